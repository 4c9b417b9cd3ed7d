"""Classify the photographs of ImageNet-1k (Russakovsky et al. 2015, ILSVRC 2012), read from disk.

The dataset is under `data.root`: one folder per class in `imagenet/train` and `imagenet/val` or,
with `task.form=shards`, `imagenet-shards` as packed by scripts/pack_imagenet.py. The 50,000 images
of "val", on which papers report, are our test set; `task.held_out=10000` holds out as many training
images for validation, the same in every run. `task.classes` is for subsets.

Training images are random crops, randomly flipped; test images are center crops of images resized
to `task.resize` on the shorter side. Batches are bytes, normalised on the network's device. Images
that cannot be read are logged and skipped, up to `task.max_damaged` over all ranks; in training the
next image is used instead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks import base
from npas.tasks.base import Batch
from npas.tasks.cifar.synthetic import generate_images
from npas.tasks.classification import SPLIT_SEED, Classification
from npas.tasks.common import checksums, workers
from npas.tasks.common.files import temporary
from npas.tasks.imagenet import shards
from npas.tasks.imagenet.damage import Damage, log
from npas.tasks.imagenet.folder import Folder
from npas.tasks.imagenet.transforms import Crops
from npas.utils import rng
from npas.utils.checks import above, at_least, at_most, below, within

if TYPE_CHECKING:
    from npas.config import DataConfig

# Means and standard deviations of the channels, in bytes, as for torchvision's networks.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
EVAL_BATCH = 100  # fills a GPU; one attention map of a Perceiver then takes 10 GB
SYNTHETIC_SIZE, SYNTHETIC_HEIGHT, SYNTHETIC_WIDTH = 64, 80, 96  # largest crop; height, width
PUBLISHED = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC 2012, in 1,000 classes
CLASSES = 1000


@dataclass
class Config:
    """The `task.*` keys of ImageNet.

    `max_damaged` is a limit over all ranks. Checkpoints do not store the damaged images: a resumed
    run starts counting from 0.
    """

    family: str = "imagenet"
    classes: int = CLASSES
    size: int = 224
    resize: int = 256
    scale_min: float = 0.08
    flip: bool = True
    pca_noise: float = 0.0
    label_smoothing: float = 0.0
    form: Literal["folder", "shards"] = "folder"
    held_out: int = 0
    max_damaged: int = 10
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        limits = {"classes": (2, 10**6), "size": (8, 4096), "resize": (8, 4096)}
        limits |= {"held_out": (0, 10**9), "max_damaged": (0, 10**9), "pca_noise": (0, 10)}
        within("task", self, limits)
        if self.resize < self.size:
            raise ValueError(
                f"task.resize={self.resize} is less than task.size={self.size}, the crop"
            )
        above("task.scale_min", self.scale_min, 0)
        at_most("task.scale_min", self.scale_min, 1)
        at_least("task.label_smoothing", self.label_smoothing, 0)
        below("task.label_smoothing", self.label_smoothing, 1)


@dataclass(frozen=True)
class Part:
    """A subset of a split's images: their indices, N, in the split's order."""

    split: str
    index_N: Tensor


class Task(Classification):
    """Classify colour images that stream from disk."""

    compared: checksums.Comparison
    # The folder of each part. The part "val" has its own, or is held out of the training images.
    splits: Mapping[str, str] = MappingProxyType({"train": "train", "test": "val"})

    def __init__(
        self, config: Config, data: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        base.refuse_val_fraction(
            data, "ImageNet", "of which task.held_out training images are held out"
        )
        self.config = config
        self.data = data
        self.seed = seed
        self.name = "imagenet" if config.classes == CLASSES else f"imagenet{config.classes}"
        self.device = torch.device("cpu")  # batches stream from disk
        self.source = data.source
        size = min(config.size, SYNTHETIC_SIZE) if self.source == "synthetic" else config.size
        self.spec = InputSpec((3, size, size), config.classes)
        self.compared = checksums.Comparison(data.verify)
        resize = round(config.resize * size / config.size)
        self.crops = Crops(
            size, resize, config.scale_min, config.flip, config.pca_noise, config.interpolation
        )
        self.label_smoothing = config.label_smoothing
        self.published = PUBLISHED if config.classes == CLASSES else {}
        self.has_validation = config.held_out > 0
        self.parts: dict[str, Part] = {}
        self.colours: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def setup(self) -> None:
        """List the images, once; raises ValueError if they are missing.

        Only their number is compared with the published dataset, since its checksums are not known.
        """
        if self.parts:
            return
        held_out = self.config.held_out
        if self.source == "synthetic":
            self.images, held_out = self._generate()
        else:
            self.images = self._find(Path(self.data.root), self.config.classes)
            for split, own in self.images.items():
                path = self._folder(Path(self.data.root)) / split
                published = self.published.get(split)
                self.compared.add_images(split, len(own.labels_N), published, path)
        self.damage = Damage(self.images, self.config.max_damaged)
        held_N = hold_out(self.images["train"].labels_N, held_out)
        parts = {
            part: Part(split, torch.arange(len(self.images[split].labels_N)))
            for part, split in self.splits.items()
        }
        parts["train"] = Part("train", (~held_N).nonzero().squeeze(1))
        if held_out:
            parts["val"] = Part("train", held_N.nonzero().squeeze(1))
        self.parts = parts

    def _folder(self, root: Path) -> Path:
        return root / ("imagenet-shards" if self.config.form == "shards" else "imagenet")

    def _find(self, root: Path, classes: int) -> dict[str, shards.Images]:
        """List the images of all splits, from folders or shards."""
        folder, packed = self._folder(root), self.config.form == "shards"
        for split in self.splits.values():
            if not (folder if packed else folder / split).exists():
                remedy = f"put its class folders into {folder / split}"
                if packed:
                    remedy = f"pack it with scripts/pack_imagenet.py into {folder}"
                raise ValueError(
                    f"{self.name} is not under data.root={root}: {remedy}, or set"
                    " data.source=synthetic"
                )
        if packed:
            return {split: shards.Shards(folder, split, classes) for split in self.splits.values()}
        train = Folder(folder / "train", classes)
        others = [split for split in self.splits.values() if split != "train"]
        found = {split: Folder(folder / split, classes, train.classes) for split in others}
        return {"train": train, **found}

    def _generate(self) -> tuple[dict[str, shards.Images], int]:
        """Write synthetic images to a folder that lives as long as the task, and list them.

        Reduces the classes so that each has an image in every split. Also returns the number of
        held-out training images.
        """
        from PIL import Image

        root, wanted = temporary(self), self.data.synthetic
        held_out = wanted.test if self.config.held_out else 0
        counts = dict.fromkeys(self.splits.values(), wanted.test)
        counts["train"] = wanted.train + held_out
        packed = self.config.form == "shards"
        tree = root / "imagenet" if packed else self._folder(root)
        classes = min(self.config.classes, *counts.values())
        size = (SYNTHETIC_HEIGHT, SYNTHETIC_WIDTH, 3)
        for purpose, (split, count) in enumerate(counts.items()):
            pixels, labels_N = generate_images(count, classes, *size, 256, purpose)
            for i, (pixels_HWC, label) in enumerate(zip(pixels, labels_N, strict=True)):
                folder = tree / split / f"n{label:08d}"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"n{label:08d}_{i}.JPEG"
                Image.fromarray(pixels_HWC).save(path, "JPEG", quality=90)
        if packed:
            splits = {split: Folder(tree / split, classes) for split in counts}
            shards.pack(splits, self._folder(root))
        return self._find(root, classes), held_out

    def inspect(self) -> dict[str, str]:
        """Count images and bytes, and read the first image of each class."""
        found, readable = {}, []
        for split, own in self.images.items():
            count, size = len(own.labels_N), own.total_bytes()
            line = f"{count:,} images of {len(own.classes):,} classes, {size:,} bytes"
            if isinstance(own, shards.Shards):
                line += f" in {len(own.paths):,} shards"
            if self.source == "real" and split in self.published:
                same = count == self.published[split]
                line += ", as published" if same else f"; {self.published[split]:,} were published"
            found[split] = line
            labels_N = own.labels_N.numpy()
            for label in range(len(own.classes)):
                first = int((labels_N == label).argmax())
                readable.append(self.damage.decoded(split, first) is not None)
        if self.config.held_out:
            found["held out"] = f"{len(self.parts['val'].index_N):,} training images, for val"
        tried = f"{sum(readable):,} of {len(readable):,} images tried"
        found["readable"] = f"{tried}, the first of each class"
        self.damage.report()
        return found

    @property
    def train_size(self) -> int:
        return len(self.parts["train"].index_N)

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        """Return images as bytes, BxCxHxW, and their classes."""
        key = rng.derive_key(self.seed, "image", epoch)
        key_B = rng.bits(key, self.parts["train"].index_N[index_B])
        images, labels = [], []
        with torch.random.fork_rng(devices=[]):
            for index, own_key in zip(index_B.tolist(), key_B.tolist(), strict=True):
                image_CHW, label = self._next_readable(index)
                images.append(self.crops.training(image_CHW, own_key))
                labels.append(label)
        return self._batch(images, labels)

    def _next_readable(self, number: int) -> tuple[Tensor, int]:
        """Read this training image or, if it is damaged, the next readable one."""
        part, labels_N = self.parts["train"], self.images["train"].labels_N
        while True:
            index = int(part.index_N[number])
            image_CHW = self.damage.decoded("train", index)
            if image_CHW is not None:
                return image_CHW, int(labels_N[index])
            self.damage.check()
            if len(self.damage.found()) >= len(part.index_N):
                raise ValueError(f"no training image of {self.name} can be read")
            number = (number + 1) % len(part.index_N)

    def _batch(self, images: list[Tensor], labels: list[int]) -> Batch:
        """Stack images, possibly none, into a batch in channels-last memory, fastest on GPUs."""
        images_BHWC = torch.empty(len(images), *self.spec.input_shape[1:], 3, dtype=torch.uint8)
        for image_HWC, image_CHW in zip(images_BHWC, images, strict=True):
            image_HWC.copy_(image_CHW.permute(1, 2, 0))
        labels_B = torch.tensor(labels, dtype=torch.int64)
        return Batch(images_BHWC.permute(0, 3, 1, 2), labels_B, len(images))

    def sync_damage(self, world: int) -> None:
        self.damage.agree(world)

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Normalise bytes to floats, contiguous on a CPU (see `classification.to_nchw`)."""
        device = images_BCHW.device
        if device not in self.colours:
            mean_C11, std_C11 = (
                torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD)
            )
            self.colours[device] = mean_C11, std_C11
        mean_C11, std_C11 = self.colours[device]
        if device.type == "cpu":
            images_BCHW = images_BCHW.contiguous()
        return images_BCHW.float().sub_(mean_C11).div_(std_C11)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.damage.report()
        return super().loss(model, batch)

    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Measure top-1 and top-5 accuracy in percent and the mean loss over readable images.

        Raises ValueError on all ranks if more than task.max_damaged images cannot be read.
        """
        self.damage.agree(world)
        images = len(self.parts[split].index_N)
        steps = range(-(-images // EVAL_BATCH))
        make = functools.partial(self._test_batches, split)
        made = workers.iterate(make, steps[rank::world], self.data.workers)
        device = next(model.parameters(), torch.empty(0)).device

        def count(step: int) -> tuple[Tensor | int, ...]:
            batch = next(made)
            if not batch.size:
                return 0, 0, 0, 0
            batch = batch.to(device)
            logits_BK = model(self.preprocess(batch.inputs)).float()
            right_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices == batch.targets[:, None]
            loss = F.cross_entropy(logits_BK, batch.targets, reduction="sum")
            return right_B5[:, 0].sum(), right_B5.sum(), loss, batch.size

        counted_E4 = base.measure(model, count, len(steps), 4, rank, world, device)
        assert next(made, None) is None  # ends its workers
        right, among_five, loss, seen = counted_E4.sum(0).tolist()
        self.damage.agree(world)
        if not seen:
            raise ValueError(f"none of the {images:,} {split} images of {self.name} can be read")
        if seen < images:
            left_out = images - int(seen)
            log.warning("%d of %s %s images were not measured", left_out, f"{images:,}", split)
        return {
            "accuracy": 100 * right / seen,
            "top5_accuracy": 100 * among_five / seen,
            "loss": loss / seen,
        }

    def _test_batches(self, split: str, steps: range) -> Iterator[Batch]:
        """Yield these batches, without unreadable images."""
        part = self.parts[split]
        for step in steps:
            images, labels = [], []
            for index in part.index_N[step * EVAL_BATCH : (step + 1) * EVAL_BATCH].tolist():
                image_CHW = self.damage.decoded(part.split, index)
                if image_CHW is not None:
                    images.append(self.crops.test(image_CHW))
                    labels.append(int(self.images[part.split].labels_N[index]))
            yield self._batch(images, labels)


def hold_out(labels_N: Tensor, count: int) -> Tensor:
    """Return a bool mask, N, of `count` images, balanced over classes; no seed changes it.

    Raises ValueError if it would leave a class without training images.
    """
    number_N = torch.arange(len(labels_N))
    rank_N = rng.bits(rng.derive_key(SPLIT_SEED, "imagenet validation"), number_N)
    by_class_N = rank_N.argsort(stable=True)
    by_class_N = by_class_N[labels_N[by_class_N].argsort(stable=True)]  # by class, then by rank
    sizes_K = labels_N.bincount()
    starts_N = (sizes_K.cumsum(0) - sizes_K).repeat_interleave(sizes_K)
    # The first image of every class comes first, then the second of every class, and so on.
    turn_N = torch.empty_like(labels_N)
    turn_N[by_class_N] = number_N - starts_N
    chosen = (turn_N * len(sizes_K) + labels_N).argsort(stable=True)[:count]
    held_N = torch.zeros(len(labels_N), dtype=torch.bool)
    held_N[chosen] = True
    left_K = labels_N[~held_N].bincount(minlength=len(sizes_K))
    if count and int(left_K[sizes_K > 0].min()) == 0:
        raise ValueError(
            f"task.held_out={count} of {len(labels_N):,} training images would leave a class with"
            " none to train on: hold out fewer"
        )
    return held_N
