"""The base classes of classification tasks: loss, accuracy, batches, held-out parts.

A `Resident` task keeps the whole dataset on the training device as NHWC bytes, already zero-padded,
so that selecting, cropping and flipping a batch is a single gather.

Dimensions: N images in the set, B in the batch, H x W pixels, C channels, K classes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.tasks.base import Batch, Metrics, Picture, Shown, Task, outputs, spread
from npas.tasks.common.measure import measure, measuring
from npas.tasks.common.workers import iterate
from npas.utils import rng

log = logging.getLogger(__name__)

SPLIT_SEED = 0  # held-out parts are the same for every run
COARSE = 4  # values of a synthetic pattern along each side of an image


class Classification(Task):
    """Train with cross-entropy and measure accuracy."""

    samples = "training images"
    selection_metric = "accuracy"
    label_smoothing = 0.0  # of the training loss only
    eval_batch = 250  # small enough that each of many ranks gets some batches
    top = 1  # 5: top-5 accuracy is measured, too

    @property
    def class_names(self) -> list[str]:
        """The name of each class; its number where the data name none."""
        return [str(label) for label in range(self.spec.num_classes)]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy, and 100 times the number of correct predictions."""
        logits_BK = outputs(model, self.preprocess(batch.inputs))[0].float()
        right = (logits_BK.detach().argmax(1) == batch.targets).sum()
        loss = F.cross_entropy(logits_BK, batch.targets, label_smoothing=self.label_smoothing)
        return loss, {"accuracy": 100 * right}

    def test_batch(self, part: Any, own: slice) -> Batch:
        """Return the network's inputs for some samples of a part, and their labels, B, int64."""
        raise AssertionError("implemented by subclasses")

    def show_input(self, part: Any, index: int) -> tuple[str, BytesIO | None]:
        """Return a heading for a sample of a part, and its image, if it has one."""
        raise AssertionError("implemented by subclasses")

    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        """Measure accuracy in percent and the mean loss over samples that can be read."""
        samples = len(self.parts[split])
        steps = range(-(-samples // self.eval_batch))
        make = functools.partial(self.test_batches, split)
        workers = self.data.workers if self.device.type == "cpu" else 0
        made = iterate(make, steps[rank::world], workers)
        device = next(model.parameters(), torch.empty(0)).device

        def count(step: int) -> tuple[Tensor | int, ...]:
            batch = next(made).to(device)
            if not batch.size:
                return 0, 0, 0, 0
            logits_BK = outputs(model, self.preprocess(batch.inputs))[0].float()
            found_BT = logits_BK.argmax(1, keepdim=True)
            if self.top > 1:
                found_BT = logits_BK.topk(min(self.top, logits_BK.shape[1])).indices
            right_BT = found_BT == batch.targets[:, None]
            loss = F.cross_entropy(logits_BK, batch.targets, reduction="sum")
            return right_BT[:, 0].sum(), right_BT.sum(), loss, batch.size

        counted_E4 = measure(model, count, len(steps), 4, rank, world, device)
        assert next(made, None) is None  # ends its workers
        right, among, loss, seen = counted_E4.sum(0).tolist()
        if not seen:
            raise ValueError(f"none of the {samples:,} {split} samples of {self.name} can be read")
        if seen < samples:
            left_out = samples - int(seen)
            log.warning("%d of %s %s samples were not measured", left_out, f"{samples:,}", split)
        found = {"accuracy": 100 * right / seen}
        if self.top > 1:
            found[f"top{self.top}_accuracy"] = 100 * among / seen
        return found | {"loss": loss / seen}

    def test_batches(self, split: str, steps: range) -> Iterator[Batch]:
        for step in steps:
            own = slice(step * self.eval_batch, (step + 1) * self.eval_batch)
            yield self.test_batch(self.parts[split], own)

    def examples(self, model: nn.Module, split: str, count: int) -> list[Shown]:
        """Return samples with the most likely class, its probability, and the label if wrong."""
        part, names, shown = self.parts[split], self.class_names, []
        with measuring(model) as device:
            for index in spread(len(part), count):
                batch = self.test_batch(part, slice(index, index + 1)).to(device)
                if not batch.size:  # a damaged image
                    continue
                inputs = self.preprocess(batch.inputs)
                probability_K = outputs(model, inputs)[0][0].float().softmax(0)
                found, label = int(probability_K.argmax()), int(batch.targets[0])
                caption = f"{names[found]} ({100 * float(probability_K[found]):.0f}%)"
                if found != label:
                    caption += f", not {names[label]}"
                heading, image = self.show_input(part, index)
                shown.append(Shown(heading, [Picture(image, caption, right=found == label)]))
        return shown


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

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, own_N: Tensor) -> Part:
        return Part(self.images[own_N], self.labels[own_N])


class Resident(Classification):
    """Classify images of a dataset that fits on the device; `prepare` also sets `recipe`."""

    recipe: Recipe
    levels = 256  # of synthetic pixels

    def load(self) -> tuple[Part, Part]:
        raise AssertionError("implemented by subclasses")

    def read(self) -> dict[str, Part]:
        """Return the images on the device, the training images zero-padded."""
        if self.source == "synthetic":
            parts = self._generate()
        else:
            train, test = self.load()
            parts = {"train": train, "test": test}
            if fraction := self.data.val_fraction:
                held_N = hold_out(train.labels, fraction, f"{self.name} validation")
                parts |= {"train": train.take(~held_N), "val": train.take(held_N)}
        padded = F.pad(parts["train"].images, (0, 0, *[self.recipe.padding] * 4))
        parts["train"] = Part(padded, parts["train"].labels)
        self.mean_C = torch.tensor(self.recipe.mean, device=self.device)
        self.std_C = torch.tensor(self.recipe.std, device=self.device)
        return {
            name: Part(part.images.to(self.device), part.labels.to(self.device))
            for name, part in parts.items()
        }

    def _generate(self) -> dict[str, Part]:
        made, (channels, height, width) = self.data.synthetic, self.spec.input_shape
        counts = {"train": made.train, "test": made.test}
        if self.has_validation:  # val_fraction of a few images may be none
            counts["val"] = made.test
        parts = {}
        for purpose, (name, count) in enumerate(counts.items()):
            shape = count, self.spec.num_classes, height, width, channels
            images, labels = generate_images(*shape, self.levels, purpose)
            parts[name] = Part(torch.from_numpy(images), torch.from_numpy(labels))
        return parts

    def inspect(self) -> dict[str, str]:
        found = {}
        for name, part in self.parts.items():
            counts = part.labels.unique(return_counts=True)[1].tolist()
            each = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
            found[name] = f"{len(part):,} images of {len(counts)} classes, {each} of each"
        return found

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        train, recipe, size = self.parts["train"], self.recipe, self.spec.input_shape[-1]

        def draw(purpose: str, stop: int) -> Tensor:
            return rng.integers(rng.derive_key(self.seed, purpose, epoch), index_B, stop)

        top_B, left_B = (draw(f"crop {side}", 2 * recipe.padding + 1) for side in ("top", "left"))
        flip_B = draw("flip", 2 if recipe.flip else 1) == 1
        images_BHWC = self._normalized(windows(train.images, index_B, top_B, left_B, flip_B, size))
        if recipe.cutout:
            row_B, column_B = draw("cutout row", size), draw("cutout column", size)
            images_BHWC = cutout(images_BHWC, row_B, column_B, recipe.cutout)
        return Batch(to_nchw(images_BHWC), train.labels[index_B], len(index_B))

    def _normalized(self, images_BHWC: Tensor) -> Tensor:
        return (images_BHWC.float() - self.mean_C) / self.std_C

    def test_batch(self, part: Part, own: slice) -> Batch:
        labels_B = part.labels[own]
        return Batch(to_nchw(self._normalized(part.images[own])), labels_B, len(labels_B))

    def show_input(self, part: Part, index: int) -> tuple[str, BytesIO]:
        from PIL import Image

        pixels_HWC = part.images[index] * (255 // (self.levels - 1))
        file = BytesIO()
        Image.fromarray(pixels_HWC.squeeze(2).cpu().numpy()).save(file, "PNG")
        return f"image {index:,}", file


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


def generate_images(
    count: int, classes: int, height: int, width: int, channels: int, levels: int, purpose: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return synthetic images, NxHxWxC bytes below `levels`, and their labels, N: 0, 1, ..., 0, 1.

    An image is the mean of its class's coarse pattern and noise; `purpose` seeds only the noise.
    """
    labels_N = np.arange(count) % classes
    patterns = np.random.default_rng(classes).random((classes, COARSE, COARSE, channels))
    rows, columns = (np.arange(size) * COARSE // size for size in (height, width))
    own = patterns[labels_N][:, rows][:, :, columns]
    noise = np.random.default_rng((classes, purpose)).random(own.shape)
    return ((own + noise) / 2 * levels).astype(np.uint8), labels_N


def windows(
    padded_NHWC: Tensor, index_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor, size: int
) -> Tensor:
    """Gather images by index and crop a size x size window at an offset from each: BxHxWxC.

    `top_B` and `left_B` are offsets in the padded image; windows with `flip_B` are mirrored.
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
