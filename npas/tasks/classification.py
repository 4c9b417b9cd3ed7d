"""Share what image classification tasks have in common: batches, loss, accuracy, held-out parts.

A task names its data set and its `Recipe`, and `read()`s the images; the rest is here. The whole
set rests on the training device as bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks.base import Batch, Task, over_ranks
from npas.tasks.common import augment
from npas.utils import rng

EVAL_BATCH = 250  # small enough that many ranks have some of them each
# The parts held out of a set are the same for every run: their seed is no key of the config.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """State how a set's images are normalised and augmented; means and deviations in bytes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int  # random crops of the image padded by this much
    flip: bool  # mirror half of the images
    cutout: int  # side of the square, 0 for none
    label_smoothing: float = 0.0  # of the training loss alone


@dataclass(frozen=True)
class Part:
    """The images of one part of a set, NxHxWxC bytes, and their labels, N."""

    images: Tensor
    labels: Tensor


class Classification(Task):
    """Train on images and count the right answers; the base of the image tasks."""

    samples = "training images"

    selection_metric = "accuracy"

    def __init__(
        self,
        name: str,
        spec: InputSpec,
        recipe: Recipe,
        *,
        val_fraction: float,
        seed: int,
        device: torch.device,
        source: str = "real",
    ) -> None:
        self.name = name
        self.source = source
        self.spec = spec
        self.recipe = recipe
        self.val_fraction = val_fraction
        self.has_validation = val_fraction > 0
        self.seed = seed
        self.device = device
        self.parts: dict[str, Part] = {}

    def read(self) -> dict[str, Part]:
        """Return the parts "train", "test" and perhaps "val". ValueError if data are missing."""
        raise ValueError(f"{self.name} has no data to read")

    def setup(self) -> None:
        """Read the data onto the device, the training images with their padding around them."""
        if self.parts:
            return
        parts = self.read()
        train = parts["train"]
        parts["train"] = Part(augment.pad(train.images, self.recipe.padding), train.labels)
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
        return Batch(self._augmented(index_B, self._draws(epoch, index_B)), labels_B, len(index_B))

    def _key(self, purpose: str, epoch: int) -> int:
        return rng.derive_key(self.seed, purpose, epoch)

    def _draws(self, epoch: int, index_B: Tensor) -> dict[str, Tensor]:
        """Return what decides the augmentation of these training images: B integers each."""
        size, offsets = self.spec.input_shape[-1], 2 * self.recipe.padding + 1
        stops = {"crop top": offsets, "crop left": offsets, "flip": 2 if self.recipe.flip else 1}
        if self.recipe.cutout:
            stops |= {"cutout row": size, "cutout column": size}
        return {
            purpose: rng.integers(self._key(purpose, epoch), index_B, stop)
            for purpose, stop in stops.items()
        }

    def _augmented(self, index_B: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Return the training images of these indices as their draws make them: BxCxHxW."""
        images_BHWC = augment.windows(
            self.parts["train"].images,
            index_B,
            top_B=drawn["crop top"],
            left_B=drawn["crop left"],
            flip_B=drawn["flip"] == 1,
            size=self.spec.input_shape[-1],
        )
        images_BHWC = augment.normalize(images_BHWC, self.mean_C, self.std_C)
        if self.recipe.cutout:
            images_BHWC = augment.cutout(
                images_BHWC, drawn["cutout row"], drawn["cutout column"], self.recipe.cutout
            )
        return augment.to_nchw(images_BHWC)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy, and the number of right answers in percent."""
        logits_BK = model(batch.inputs)
        right = (logits_BK.detach().argmax(1) == batch.targets).sum()
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits_BK.float(), batch.targets, label_smoothing=smoothing)
        return loss, {"accuracy": 100 * right}

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Measure accuracy in percent and mean loss on "val" or "test", every image once."""
        part = self.parts[split]
        was_training = model.training
        model.eval()
        images, labels = part.images.split(EVAL_BATCH), part.labels.split(EVAL_BATCH)
        # Of each batch the right answers and the loss; the other ranks' batches stay 0 here.
        counted_E2 = torch.zeros(len(labels), 2, dtype=torch.float64, device=self.device)
        for i in range(rank, len(labels), world):
            images_BHWC = augment.normalize(images[i], self.mean_C, self.std_C)
            logits_BK = model(augment.to_nchw(images_BHWC)).float()
            counted_E2[i, 0] = (logits_BK.argmax(1) == labels[i]).sum()
            counted_E2[i, 1] = F.cross_entropy(logits_BK, labels[i], reduction="sum")
        model.train(was_training)
        right, loss = over_ranks(counted_E2, world).cpu().sum(0).tolist()
        count = len(part.labels)
        return {"accuracy": 100 * right / count, "loss": loss / count}


def hold_out(labels_N: Tensor, fraction: float, purpose: str) -> Tensor:
    """Return the same `fraction` of every class for every seed: a mask, bool, N.

    ValueError if a fraction above 0 is none of the images or all.
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
            " images: choose one that leaves some to train on and some to validate on"
        )
    return held_N
