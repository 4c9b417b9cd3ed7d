"""Classify the photographs of ImageNet-1k (Russakovsky et al. 2015, ILSVRC 2012), read from disk.

The 50,000 images of "val", on which papers report, are our test set; `task.held_out` training
images, the same in every run, are for validation. Batches are bytes, normalised on the network's
device. Images that cannot be read are logged and skipped, up to `task.max_damaged` of each rank and
its workers; in training the next image is used instead.
"""

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from npas.models import InputSpec
from npas.tasks import base
from npas.tasks.base import Batch
from npas.tasks.classification import SPLIT_SEED, Classification, generate_images
from npas.tasks.imagenet import shards
from npas.tasks.imagenet.shards import Folder, Shards
from npas.tasks.imagenet.transforms import Crops, decode
from npas.utils import rng
from npas.utils.checks import Ranged
from npas.utils.files import temporary

log = logging.getLogger(__name__)

# Means and standard deviations of the channels, in bytes, as for torchvision's networks.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
SYNTHETIC_SIZE, SYNTHETIC_HEIGHT, SYNTHETIC_WIDTH = 64, 80, 96  # largest crop; height, width
PUBLISHED = {"train": 1_281_167, "val": 50_000}  # images of ILSVRC 2012, in 1,000 classes
CLASSES = 1000


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of ImageNet; `max_damaged` is a limit of each process and its workers."""

    family: str = "imagenet"
    classes: Annotated[int, "[2, 1000000]"] = CLASSES
    size: Annotated[int, "[8, 4096]"] = 224
    resize: Annotated[int, "[8, 4096]"] = 256
    scale_min: Annotated[float, "(0, 1]"] = 0.08
    flip: bool = True
    pca_noise: Annotated[float, "[0, 10]"] = 0.0
    label_smoothing: Annotated[float, "[0, 1)"] = 0.0
    form: Literal["folder", "shards"] = "folder"
    held_out: Annotated[int, "[0, inf)"] = 0
    max_damaged: Annotated[int, "[0, inf)"] = 10
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize < self.size:
            raise ValueError(f"task.resize={self.resize} is less than task.size={self.size}")


@dataclass(frozen=True)
class Part:
    """A subset of a split's images: their indices, N, in the split's order."""

    split: str
    index_N: Tensor

    def __len__(self) -> int:
        return len(self.index_N)


class Task(Classification):
    """Classify colour images that stream from disk."""

    eval_batch = 100  # fills a GPU; one attention map of a Perceiver then takes 10 GB
    top = 5

    def prepare(self) -> None:
        config = self.config
        reason = "of which task.held_out training images are held out"
        base.refuse_val_fraction(self.data, "ImageNet", reason)
        # The folder of each part. Without one, the part "val" is held out of the training images.
        self.splits = {"train": "train", "test": "val"}
        self.describe(config.classes)
        self.name = "imagenet" if config.classes == CLASSES else f"imagenet{config.classes}"
        is_whole = config.classes == CLASSES and self.source == "real"
        self.published = PUBLISHED if is_whole else {}
        self.has_validation = config.held_out > 0

    def describe(self, classes: int) -> None:
        """Set what depends on config and classes only."""
        config = self.config
        self.device = torch.device("cpu")  # batches stream from disk
        size = self.at_most(SYNTHETIC_SIZE, config.size)
        self.spec = InputSpec((3, size, size), classes)
        resize = round(config.resize * size / config.size)
        self.crops = Crops(
            size, resize, config.scale_min, config.flip, config.pca_noise, config.interpolation
        )
        self.label_smoothing = config.label_smoothing

    def read(self) -> dict[str, Part]:
        """List the images; only their number is compared, since no checksums are known."""
        held_out, root, classes = self.config.held_out, self.root, self.spec.num_classes
        if self.source == "synthetic":
            held_out = self.data.synthetic.test if held_out else 0
            root, classes = self._generate(held_out)
        folder, packed = self._folder(root), self.config.form == "shards"
        self.images: dict[str, Folder | Shards] = {}
        for split in self.splits.values():
            path = folder if packed else folder / split
            if not path.exists():
                how = "shards of scripts/pack_imagenet.py" if packed else "class folders"
                raise self.missing(f"{how} into {path}")
            names = self.images["train"].classes if self.images else None
            own = Shards(folder, split, classes) if packed else Folder(path, classes, names)
            self.images[split], known = own, self.published.get(split)
            self.compared.add_images(split, len(own.labels_N), known, folder / split)
        # One byte per image in memory shared with the workers: whether it could not be read.
        self.damaged = {
            split: torch.zeros(len(own.labels_N), dtype=torch.uint8).share_memory_()
            for split, own in self.images.items()
        }
        held_N = hold_out(self.images["train"].labels_N, held_out)
        parts = {
            part: Part(split, torch.arange(len(self.images[split].labels_N)))
            for part, split in self.splits.items()
        }
        parts["train"] = Part("train", (~held_N).nonzero().squeeze(1))
        if held_out:
            parts["val"] = Part("train", held_N.nonzero().squeeze(1))
        return parts

    def _folder(self, root: Path) -> Path:
        return root / ("imagenet-shards" if self.config.form == "shards" else "imagenet")

    def _generate(self, held_out: int) -> tuple[Path, int]:
        """Write synthetic images to a folder that lives as long as the task."""
        from PIL import Image

        root, wanted = temporary(self), self.data.synthetic
        counts = dict.fromkeys(self.splits.values(), wanted.test)
        counts["train"] = wanted.train + held_out
        packed = self.config.form == "shards"
        tree = root / "imagenet" if packed else self._folder(root)
        classes = min(self.spec.num_classes, *counts.values())
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
        return root, classes

    def inspect(self) -> dict[str, str]:
        found, readable = {}, []
        for split, own in self.images.items():
            count, size = len(own.labels_N), own.total_bytes()
            found[split] = f"{count:,} images of {len(own.classes):,} classes, {size:,} bytes"
            found[split] += self.compared.note(split)
            labels_N = own.labels_N.numpy()
            for label in range(len(own.classes)):
                first = int((labels_N == label).argmax())
                readable.append(self.decoded(split, first) is not None)
        if self.config.held_out:
            found["held out"] = f"{len(self.parts['val']):,} training images, for val"
        tried = f"{sum(readable):,} of {len(readable):,} images tried"
        return {**found, "readable": f"{tried}, the first of each class"}

    def decoded(self, split: str, index: int) -> Tensor | None:
        """Read an image, CxHxW bytes; returns None if it is damaged, which is logged once.

        Raises ValueError if there are more than `task.max_damaged`.
        """
        if self.damaged[split][index]:
            return None
        images, most = self.images[split], self.config.max_damaged
        try:
            return decode(images.read(index))
        except (ValueError, OSError) as error:
            self.damaged[split][index] = 1
            log.warning("%s is left out: %s", images.name(index), error)
        if (count := sum(int(flags.sum()) for flags in self.damaged.values())) > most:
            raise ValueError(
                f"{count} images cannot be read, more than task.max_damaged={most}, the last of"
                f" them {images.name(index)}: put whole files there, or raise task.max_damaged"
            )
        return None

    def _readable(self, part: Part, numbers: Iterable[int]) -> Iterator[tuple[Tensor, int]]:
        """Yield the image and the label of each of these samples that can be read."""
        for index in (int(part.index_N[number]) for number in numbers):
            if (image_CHW := self.decoded(part.split, index)) is not None:
                yield image_CHW, int(self.images[part.split].labels_N[index])

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        key, part, samples = rng.derive_key(self.seed, "image", epoch), self.parts["train"], []
        key_B = rng.bits(key, part.index_N[index_B])
        with torch.random.fork_rng(devices=[]):
            for number, own_key in zip(index_B.tolist(), key_B.tolist(), strict=True):
                # Instead of a damaged image, the next one that can be read.
                order = itertools.chain(range(number, len(part)), range(number))
                if (found := next(self._readable(part, order), None)) is None:
                    raise ValueError(f"no training image of {self.name} can be read")
                samples.append((self.crops.training(found[0], own_key), found[1]))
        return self._batch(samples)

    def test_batch(self, part: Part, own: slice) -> Batch:
        found = self._readable(part, range(len(part))[own])
        return self._batch([(self.crops.test(image_CHW), label) for image_CHW, label in found])

    def _batch(self, samples: list[tuple[Tensor, int]]) -> Batch:
        """Stack images, possibly none, into a batch in channels-last memory, fastest on GPUs."""
        images_BHWC = torch.empty(len(samples), *self.spec.input_shape[1:], 3, dtype=torch.uint8)
        for image_HWC, (image_CHW, _) in zip(images_BHWC, samples, strict=True):
            image_HWC.copy_(image_CHW.permute(1, 2, 0))
        labels_B = torch.tensor([label for _, label in samples], dtype=torch.int64)
        return Batch(images_BHWC.permute(0, 3, 1, 2), labels_B, len(samples))

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Normalise bytes to floats, contiguous on a CPU (see `classification.to_nchw`)."""
        mean_C11, std_C11 = _colours(images_BCHW.device)
        if images_BCHW.is_cpu:
            images_BCHW = images_BCHW.contiguous()
        return images_BCHW.float().sub_(mean_C11).div_(std_C11)

    @property
    def class_names(self) -> list[str]:
        names = self.images["train"].classes
        return names + super().class_names[len(names) :]  # synthetic images have fewer classes

    def show_input(self, part: Part, index: int) -> tuple[str, BytesIO]:
        images, number = self.images[part.split], int(part.index_N[index])
        return Path(images.name(number)).name, BytesIO(images.read(number))


@functools.cache
def _colours(device: torch.device) -> list[Tensor]:
    return [torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD)]


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
