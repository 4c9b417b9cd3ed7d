"""Classify the photographs of ImageNet-1k (Russakovsky et al. 2015, ILSVRC 2012), read from disk.

The set lies under `data.root`: as one folder a class, `imagenet/train` and `imagenet/val`, or with
`task.form=shards` as scripts/pack_imagenet.py packs it, `imagenet-shards`. The 50,000 images of its
"val" are what is published of, and our test set; `task.held_out=10000` takes so many training
images out to choose a checkpoint by, the same in every run. `task.classes` is for subsets.

A training image is a random crop, mirrored by chance; a test image the middle of one whose shorter
side is `task.resize`. Batches are bytes, and are normalised where the network is. Images that
cannot be read are named and left out, up to `task.max_damaged` of the run, over all ranks; in
training the next one takes the place.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks import base
from npas.tasks.base import Batch, over_ranks
from npas.tasks.common import checksums, jpeg
from npas.tasks.imagenet import shards
from npas.tasks.imagenet.damage import Damage, log
from npas.tasks.imagenet.folder import Folder, Images
from npas.tasks.imagenet.split import hold_out
from npas.tasks.imagenet.transforms import Crops, decode
from npas.utils import rng
from npas.utils.checks import above, at_least, at_most, below

if TYPE_CHECKING:
    from npas.config import DataConfig

# Means and deviations of the channels, in bytes, that torchvision's networks are trained with.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
# Large enough for a GPU; a Perceiver's map of attention, of which there is one at a time, is 10 GB.
EVAL_BATCH = 100
SYNTHETIC_SIZE = 64  # of a synthetic image's crop, at most
PUBLISHED = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC 2012, in 1,000 classes
CLASSES = 1000
MOST_CLASSES, MOST_SIZE = 1_000_000, 4096  # beyond these a typing error


@dataclass
class Config:
    """The `task.*` keys of ImageNet. ValueError for what cannot be.

    `max_damaged` is a limit of all ranks together. What was found is not kept with a checkpoint: a
    run that goes on counts from 0, and finds damaged images again when it meets them.
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
        for key, least in (("classes", 2), ("size", 8), ("held_out", 0), ("max_damaged", 0)):
            at_least(f"task.{key}", getattr(self, key), least)
        at_most("task.classes", self.classes, MOST_CLASSES)
        at_most("task.resize", self.resize, MOST_SIZE)
        if self.resize < self.size:
            raise ValueError(
                f"task.resize={self.resize} is less than task.size={self.size}, which is cut out of"
                f" it: set task.resize={self.size} or more"
            )
        above("task.scale_min", self.scale_min, 0)
        at_most("task.scale_min", self.scale_min, 1)
        at_least("task.pca_noise", self.pca_noise, 0)
        at_most("task.pca_noise", self.pca_noise, 10)
        at_least("task.label_smoothing", self.label_smoothing, 0)
        below("task.label_smoothing", self.label_smoothing, 1)


@dataclass(frozen=True)
class Part:
    """Which images of a split a part has: their indices, N, in the split's order."""

    split: str
    index_N: Tensor


class Task(base.Task):
    """Classify colour images that stream from disk."""

    samples = "training images"

    compared: checksums.Comparison
    selection_metric = "accuracy"

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
        self.device = torch.device("cpu")  # whatever trains: batches stream from disk
        self.source = data.source
        size = config.size
        if self.source == "synthetic":
            size = min(size, SYNTHETIC_SIZE)
        self.spec = InputSpec((3, size, size), config.classes)
        self.compared = checksums.Comparison(data.verify)
        self.crops = Crops(
            size,
            round(config.resize * size / config.size),
            config.scale_min,
            config.flip,
            config.pca_noise,
            config.interpolation,
        )
        self.has_validation = config.held_out > 0
        self.parts: dict[str, Part] = {}
        self.colours: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def setup(self) -> None:
        """List the images, once. ValueError, one line, if they are missing or not what they are."""
        if self.parts:
            return
        if self.source == "synthetic":
            images, held_out = self._make_up()
        else:
            images = self._find(Path(self.data.root), self.config.classes)
            held_out = self.config.held_out
            self._compare(images)
        labels_N = images["train"].labels_N
        held_N = hold_out(labels_N, held_out)
        self.images = images
        self.damage = Damage(images, self.config.max_damaged)
        parts = {"train": Part("train", (~held_N).nonzero().squeeze(1))}
        parts["test"] = Part("val", torch.arange(len(images["val"].labels_N)))
        if self.has_validation:
            parts["val"] = Part("train", held_N.nonzero().squeeze(1))
        self.parts = parts

    def _find(self, root: Path, classes: int) -> dict[str, Images]:
        """List both splits, as folders or as shards."""
        folder = root / self._folder()
        if self.config.form == "shards":
            if not folder.is_dir():
                raise ValueError(
                    f"{self.name} is not under data.root={root}: pack it with"
                    f" scripts/pack_imagenet.py into {folder}, or set data.source=synthetic"
                )
            return {s: shards.Shards(folder, s, classes) for s in PUBLISHED}
        for split in PUBLISHED:
            if not (folder / split).exists():
                raise ValueError(
                    f"{self.name} is not under data.root={root}: put its class folders into"
                    f" {folder / split}, or set data.source=synthetic"
                )
        train = Folder(folder / "train", classes)
        return {"train": train, "val": Folder(folder / "val", classes, train.classes)}

    def _compare(self, images: dict[str, Images]) -> None:
        """Compare how many images there are with the published: their checksums are not known."""
        for split, own in images.items():
            published = PUBLISHED[split] if self.config.classes == CLASSES else None
            path = Path(self.data.root) / self._folder() / split
            self.compared.add_images(split, len(own.labels_N), published, path)

    def _folder(self) -> str:
        return "imagenet-shards" if self.config.form == "shards" else "imagenet"

    def _make_up(self) -> tuple[dict[str, Images], int]:
        """Write synthetic images to a folder that is gone with the task, and list them."""
        folder = tempfile.mkdtemp(prefix="npas-imagenet-")
        weakref.finalize(self, _remove, folder, os.getpid())
        root, wanted = Path(folder), self.data.synthetic
        held_out = wanted.test if self.has_validation else 0
        classes = jpeg.write(
            root / "imagenet", self.config.classes, wanted.train + held_out, wanted.test
        )
        if self.config.form == "shards":
            splits = {s: Folder(root / "imagenet" / s, classes) for s in PUBLISHED}
            shards.pack(splits, root / "imagenet-shards")
        return self._find(root, classes), held_out

    def inspect(self) -> dict[str, str]:
        """Count images and bytes beside the published, and read the first image of each class."""
        found = {}
        for split, own in self.images.items():
            count, size = len(own.labels_N), own.total_bytes()
            line = f"{count:,} images of {len(own.classes):,} classes, {size:,} bytes"
            if isinstance(own, shards.Shards):
                line += f" in {len(own.paths):,} shards"
            if self.source == "real" and self.config.classes == CLASSES:
                same = count == PUBLISHED[split]
                line += ", as published" if same else f"; {PUBLISHED[split]:,} were published"
            found[split] = line
        if self.has_validation:
            found["held out"] = f"{len(self.parts['val'].index_N):,} training images, for val"
        tried = bad = 0
        for split, own in self.images.items():
            labels_N = own.labels_N.numpy()
            for label in range(len(own.classes)):
                tried += 1
                first = int((labels_N == label).argmax())
                bad += self._decoded(split, first) is None
        found["readable"] = f"{tried - bad:,} of {tried:,} images tried, the first of each class"
        self.damage.report()
        return found

    @property
    def train_size(self) -> int:
        return len(self.parts["train"].index_N)

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        """Return images as bytes, BxCxHxW, and their classes."""
        key = rng.derive_key(self.seed, "image", epoch)
        key_B = rng.bits(key, self.parts["train"].index_N[index_B])
        return self._training_batch(index_B.tolist(), key_B.tolist())

    def _training_batch(self, places: list[int], keys: list[int]) -> Batch:
        images_BHWC, labels = self._empty(len(places)), []
        with torch.random.fork_rng(devices=[]):
            for slot, (place, key) in enumerate(zip(places, keys, strict=True)):
                image_CHW, label = self._next_readable(place)
                images_BHWC[slot] = self.crops.training(image_CHW, key).permute(1, 2, 0)
                labels.append(label)
        return Batch(images_BHWC.permute(0, 3, 1, 2), torch.tensor(labels), len(places))

    def _next_readable(self, place: int) -> tuple[Tensor, int]:
        """Read the training image at this place or, if it is damaged, the next that is not."""
        part = self.parts["train"]
        while True:
            index = int(part.index_N[place])
            image_CHW = self._decoded(part.split, index)
            if image_CHW is not None:
                return image_CHW, int(self.images[part.split].labels_N[index])
            self.damage.check()
            if self.damage.count() >= len(part.index_N):
                raise ValueError(f"no training image of {self.name} can be read")
            place = (place + 1) % len(part.index_N)

    def _decoded(self, split: str, index: int) -> Tensor | None:
        """Read an image; None, and a note of it, if it is damaged."""
        if not self.damage.found(split, index):
            try:
                return decode(self.images[split].read(index))
            except (ValueError, OSError):
                self.damage.note(split, index)
        return None

    def _empty(self, count: int) -> Tensor:
        """Make room for images: BxHxWxC, which a GPU's convolutions like better."""
        return torch.empty(count, *self.spec.input_shape[1:], 3, dtype=torch.uint8)

    def sync_damage(self, world: int) -> None:
        self.damage.agree(world)

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Turn bytes into floats; on a CPU in the plain order (see `augment.to_nchw`)."""
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
        """Return the mean cross-entropy, and the number of right answers in percent."""
        self.damage.report()
        logits_BK = model(self.preprocess(batch.inputs))
        right = (logits_BK.detach().argmax(1) == batch.targets).sum()
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits_BK.float(), batch.targets, label_smoothing=smoothing)
        return loss, {"accuracy": 100 * right}

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Measure top-1 and top-5 accuracy in percent and mean loss, every readable image once.

        ValueError, in all ranks, if images that cannot be read are more than task.max_damaged.
        """
        from npas.tasks.common.workers import iterate

        self.damage.agree(world)
        count = len(self.parts[split].index_N)
        steps = range(-(-count // EVAL_BATCH))
        own, workers = steps[rank::world], self.data.workers
        make = functools.partial(self._test_batches, split)
        made = iterate(make, own, workers) if workers else make(own)
        device = next(model.parameters(), torch.empty(0)).device
        was_training = model.training
        model.eval()
        # Of each batch the right answers, those among five, the loss, and how many images it had;
        # the other ranks' batches stay 0 here.
        counted_E4 = torch.zeros(len(steps), 4, dtype=torch.float64, device=device)
        for i, batch in zip(own, made, strict=True):
            if batch.size:
                batch = batch.to(device)
                logits_BK = model(self.preprocess(batch.inputs)).float()
                best_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices
                right_B5 = best_B5 == batch.targets[:, None]
                counted_E4[i, 0] = right_B5[:, 0].sum()
                counted_E4[i, 1] = right_B5.sum()
                counted_E4[i, 2] = F.cross_entropy(logits_BK, batch.targets, reduction="sum")
                counted_E4[i, 3] = batch.size
        model.train(was_training)
        right, among_five, loss, seen = over_ranks(counted_E4, world).cpu().sum(0).tolist()
        self.damage.agree(world)
        self._say_left_out(split, count - int(seen), count)
        return {
            "accuracy": 100 * right / seen,
            "top5_accuracy": 100 * among_five / seen,
            "loss": loss / seen,
        }

    def _test_batches(self, split: str, steps: range) -> Iterator[Batch]:
        """Yield the images that can be read of these batches, and their labels."""
        part = self.parts[split]
        for step in steps:
            images_BHWC = self._empty(EVAL_BATCH)
            labels: list[int] = []
            for index in part.index_N[step * EVAL_BATCH : (step + 1) * EVAL_BATCH].tolist():
                image_CHW = self._decoded(part.split, index)
                if image_CHW is not None:
                    images_BHWC[len(labels)] = self.crops.test(image_CHW).permute(1, 2, 0)
                    labels.append(int(self.images[part.split].labels_N[index]))
            images_BCHW = images_BHWC[: len(labels)].permute(0, 3, 1, 2)
            yield Batch(images_BCHW, torch.tensor(labels, dtype=torch.int64), len(labels))

    def _say_left_out(self, split: str, left_out: int, count: int) -> None:
        """Report how many images, over all ranks, were not measured; ValueError if all of them."""
        if left_out == count:
            raise ValueError(f"none of the {count:,} {split} images of {self.name} can be read")
        if left_out:
            log.warning("%d of %s %s images were not measured", left_out, f"{count:,}", split)


def _remove(folder: str, process: int) -> None:
    """Delete a folder, unless this is a forked copy of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
