"""The base classes of image classification tasks: loss, accuracy, batches, held-out parts.

A `Resident` task keeps the whole dataset on the training device as NHWC bytes, already zero-padded,
so that selecting, cropping and flipping a batch is a single gather.

Dimensions: N images in the set, B in the batch, H x W pixels, C channels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks.base import Batch, Task, measure
from npas.utils import rng

if TYPE_CHECKING:
    from npas.config import DataConfig

EVAL_BATCH = 250  # small enough that each of many ranks gets some batches
SPLIT_SEED = 0  # held-out parts are the same for every run


class Classification(Task):
    """Train with cross-entropy and measure accuracy; the base of the image tasks."""

    samples = "training images"
    selection_metric = "accuracy"
    label_smoothing = 0.0  # of the training loss only

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy, and 100 times the number of correct predictions."""
        logits_BK = model(self.preprocess(batch.inputs))
        right = (logits_BK.detach().argmax(1) == batch.targets).sum()
        smoothing = self.label_smoothing
        loss = F.cross_entropy(logits_BK.float(), batch.targets, label_smoothing=smoothing)
        return loss, {"accuracy": 100 * right}


@dataclass(frozen=True)
class Recipe:
    """How images are normalised and augmented; means and deviations on the scale of bytes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int  # zero padding, in pixels, before the random crop
    flip: bool  # mirror half of the images
    cutout: int  # side of the square in pixels; 0: no cutout


@dataclass(frozen=True)
class Part:
    """The images of one split, NxHxWxC bytes, and their labels, N."""

    images: Tensor
    labels: Tensor

    def split(self, held_N: Tensor) -> tuple[Part, Part]:
        """Return the images that are not held out, and those that are."""
        return Part(self.images[~held_N], self.labels[~held_N]), Part(
            self.images[held_N], self.labels[held_N]
        )


class Resident(Classification):
    """Classify images of a dataset that fits on the device."""

    def __init__(
        self,
        name: str,
        spec: InputSpec,
        recipe: Recipe,
        data: DataConfig,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.name = name
        self.source = data.source
        self.spec = spec
        self.recipe = recipe
        self.synthetic = data.synthetic
        self.val_fraction = data.val_fraction or 0.0
        self.has_validation = self.val_fraction > 0
        self.seed = seed
        self.device = device
        self.parts: dict[str, Part] = {}

    def read(self) -> dict[str, Part]:
        """Return the parts "train", "test" and perhaps "val"; raises ValueError if missing."""
        raise ValueError(f"{self.name} has no data to read")

    def setup(self) -> None:
        """Read the data onto the device, the training images zero-padded."""
        if self.parts:
            return
        parts, padding = self.read(), (0, 0, *[self.recipe.padding] * 4)
        train = parts["train"]
        parts["train"] = Part(F.pad(train.images, padding), train.labels)
        self.parts = {
            name: Part(part.images.to(self.device), part.labels.to(self.device))
            for name, part in parts.items()
        }
        self.mean_C = torch.tensor(self.recipe.mean, device=self.device)
        self.std_C = torch.tensor(self.recipe.std, device=self.device)

    def inspect(self) -> dict[str, str]:
        """Count the images of each part, and of its classes."""
        found = {}
        for name, part in self.parts.items():
            counts = part.labels.unique(return_counts=True)[1].tolist()
            each = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
            found[name] = f"{len(part.labels):,} images of {len(counts)} classes, {each} of each"
        return found

    @property
    def train_size(self) -> int:
        return len(self.parts["train"].labels)

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        labels_B = self.parts["train"].labels[index_B]
        return Batch(self._augmented(index_B, epoch), labels_B, len(index_B))

    def _augmented(self, index_B: Tensor, epoch: int) -> Tensor:
        """Return these training images augmented, BxCxHxW: functions of seed, epoch and index."""
        recipe, size = self.recipe, self.spec.input_shape[-1]

        def draw(purpose: str, stop: int) -> Tensor:
            return rng.integers(rng.derive_key(self.seed, purpose, epoch), index_B, stop)

        top_B, left_B = (draw(f"crop {side}", 2 * recipe.padding + 1) for side in ("top", "left"))
        flip_B = draw("flip", 2 if recipe.flip else 1) == 1
        images_NHWC = self.parts["train"].images
        images_BHWC = self._normalized(windows(images_NHWC, index_B, top_B, left_B, flip_B, size))
        if recipe.cutout:
            row_B, column_B = draw("cutout row", size), draw("cutout column", size)
            images_BHWC = cutout(images_BHWC, row_B, column_B, recipe.cutout)
        return to_nchw(images_BHWC)

    def _normalized(self, images_BHWC: Tensor) -> Tensor:
        return (images_BHWC.float() - self.mean_C) / self.std_C

    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Measure accuracy in percent and mean loss on "val" or "test"."""
        part = self.parts[split]
        images, labels = part.images.split(EVAL_BATCH), part.labels.split(EVAL_BATCH)

        def count(i: int) -> tuple[Tensor, Tensor]:
            logits_BK = model(to_nchw(self._normalized(images[i]))).float()
            right = (logits_BK.argmax(1) == labels[i]).sum()
            return right, F.cross_entropy(logits_BK, labels[i], reduction="sum")

        counted_E2 = measure(model, count, len(labels), 2, rank, world, self.device)
        right, loss = counted_E2.sum(0).tolist()
        return {"accuracy": 100 * right / len(part.labels), "loss": loss / len(part.labels)}


def hold_out(labels_N: Tensor, fraction: float, purpose: str) -> Tensor:
    """Return a bool mask, N, of `fraction` of every class; it does not depend on the run's seed.

    Raises ValueError if a fraction above 0 holds out no images or all.
    """
    rank_N = rng.bits(rng.derive_key(SPLIT_SEED, purpose), torch.arange(len(labels_N)))
    held_N = torch.zeros(len(labels_N), dtype=torch.bool)
    for label in labels_N.unique():
        members = (labels_N == label).nonzero().squeeze(1)
        members = members[rank_N[members].argsort(stable=True)]
        held_N[members[: round(fraction * len(members))]] = True
    if fraction and (held_N.all() or not held_N.any()):
        raise ValueError(
            f"data.val_fraction={fraction} holds out {int(held_N.sum()):,} of {len(held_N):,}"
            " samples: choose one that leaves some to train on and some to validate on"
        )
    return held_N


def windows(
    padded_NHWC: Tensor, index_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor, size: int
) -> Tensor:
    """Gather images by index and crop a size x size window at an offset from each: BxHxWxC.

    `top_B` and `left_B` are offsets in the padded image; where `flip_B` is true the window is
    mirrored left to right.
    """
    steps = torch.arange(size, device=index_B.device)
    rows_BH = top_B[:, None] + steps
    columns_BW = left_B[:, None] + torch.where(flip_B[:, None], size - 1 - steps, steps)
    return padded_NHWC[index_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]


def cutout(images_BHWC: Tensor, row_B: Tensor, column_B: Tensor, length: int) -> Tensor:
    """Zero the length x length square around each image's (row, column), clipped at the border.

    DeVries & Taylor 2017 (arXiv 1708.04552). The centre is any pixel, so the square may be partly
    outside. Applied to normalised images, where 0 is the mean.
    """

    def inside(centre_B: Tensor, size: int) -> Tensor:
        distance_BS = torch.arange(size, device=centre_B.device) - centre_B[:, None]
        return (distance_BS >= -(length // 2)) & (distance_BS < length - length // 2)

    height, width = images_BHWC.shape[1:3]
    inside_BHW = inside(row_B, height)[:, :, None] & inside(column_B, width)[:, None, :]
    return images_BHWC.masked_fill(inside_BHW.unsqueeze(-1), 0.0)


def to_nchw(images_BHWC: Tensor) -> Tensor:
    """Return the batch as BxCxHxW: on a GPU a channels-last view, on a CPU a contiguous copy.

    Torch 2.15 corrupts its heap in some channels-last convolutions on CPUs. Images of one channel,
    which are both contiguous and channels-last, are copied too.
    """
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if not images_BCHW.is_cpu:
        return images_BCHW
    return images_BCHW.clone(memory_format=torch.contiguous_format)
