"""Classify the 32x32 photographs of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), "python version".

Augmentation is that of both papers: zero-padded random crops, flips, and 16-pixel cutout. Not from
the papers: `task.label_smoothing`, and `task.image_size=16` or 8, which averages squares of pixels
and shrinks crops and cutout alike.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks.classification import Part, Recipe, Resident
from npas.tasks.common import checksums, download
from npas.tasks.common.unpickle import unpickle
from npas.utils.checks import Ranged
from npas.utils.files import locked, reading

PIXELS = 3 * 32 * 32
# Means and standard deviations of the channels, from the Wide ResNet authors.
RECIPES = {
    10: Recipe((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), padding=4, flip=True, cutout=16),
    100: Recipe((129.3, 124.1, 112.4), (68.2, 65.4, 70.4), padding=4, flip=True, cutout=16),
}
NAMES = {  # as in the archives
    10: "airplane automobile bird cat deer dog frog horse ship truck",
    100: """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""",
}
# Of the archives; the author published md5 checksums, which can be forged.
SHA256 = {
    10: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    100: "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of CIFAR."""

    family: str = "cifar"
    classes: int = 10
    cutout: bool = True
    label_smoothing: Annotated[float, "[0, 1)"] = 0.0
    image_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size not in (32, 16, 8):
            raise ValueError(f"task.image_size={self.image_size}: must be 32, 16 or 8")
        if self.classes not in RECIPES:
            raise ValueError(f"task.classes={self.classes}: CIFAR has 10 or 100 classes")


class Task(Resident):
    """Classify 32x32 colour images into 10 or 100 classes."""

    def prepare(self) -> None:
        config, size = self.config, self.config.image_size
        self.factor, recipe = 32 // size, RECIPES[config.classes]
        cutout = recipe.cutout // self.factor if config.cutout else 0
        self.recipe = replace(recipe, padding=recipe.padding // self.factor, cutout=cutout)
        self.name, self.spec = f"cifar{config.classes}", InputSpec((3, size, size), config.classes)
        self.label_smoothing, self.sha256 = config.label_smoothing, SHA256[config.classes]

    @property
    def class_names(self) -> list[str]:
        return NAMES[self.config.classes].split()

    @cached_property
    def published(self) -> Any:
        """Torchvision's class of the dataset, which lists files, checksums and the address."""
        from torchvision import datasets

        return datasets.CIFAR10 if self.spec.num_classes == 10 else datasets.CIFAR100

    @property
    def files(self) -> dict[str, str]:
        """The published md5 checksum of each file, by its path below `data.root`."""
        listed = (*self.published.train_list, *self.published.test_list)
        return {f"{self.published.base_folder}/{name}": md5 for name, md5 in listed}

    def load(self) -> tuple[Part, Part]:
        self._ensure()
        *train, test = (self._read(file, md5) for file, md5 in self.files.items())
        images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
        return Part(images, labels), Part(*test)

    def inspect(self) -> dict[str, str]:
        return self.compared.lines() | super().inspect()

    def _ensure(self) -> None:
        """Unpack the archive, downloaded first if necessary, unless all files exist."""
        archive = self.root / self.published.filename

        def complete() -> bool:
            return all((self.root / file).is_file() for file in self.files)

        if complete():
            return
        if not archive.is_file():
            if not self.data.download:
                what = f"{archive.name} (or its folder {self.published.base_folder})"
                raise self.missing(what, downloads=True)
            download.fetch(self.published.url, archive, self.sha256)
        with locked(self.root / f".{archive.name}.lock"):
            if not complete():  # another process was faster
                refuses = self.data.verify == "refuse"
                download.unpack(archive, self.sha256 if refuses else None, self.files, self.root)

    def _read(self, file: str, md5: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a file's images, NHWC bytes, and labels; its checksum is compared first."""
        path = self.root / file
        data = path.read_bytes()
        remedy = "delete it, and data.download=true fetches the published set"
        self.compared.add(file, checksums.md5(data), f"md5 {md5}", path=path, remedy=remedy)
        with reading(path, remedy):
            rows, labels_N = parse(unpickle(data), self.spec.num_classes)
        images_NCHW = torch.from_numpy(rows).view(-1, 3, 32, 32)
        if self.factor > 1:
            images_NCHW = F.avg_pool2d(images_NCHW.float(), self.factor).round().to(torch.uint8)
        return images_NCHW.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(labels_N)


def parse(batch: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, Nx3072 bytes, and labels, N, of one file; raises ValueError if malformed."""
    key = "labels" if classes == 10 else "fine_labels"
    if not isinstance(batch, dict) or not {"data", key} <= batch.keys():
        raise ValueError(f"it lacks 'data' or {key!r}")
    rows, labels = batch["data"], np.asarray(batch[key])
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (PIXELS,):
        raise ValueError(f"its images are not rows of {PIXELS} bytes")
    if labels.shape != rows.shape[:1] or not set(labels.tolist()) <= set(range(classes)):
        raise ValueError(f"it does not have one label below {classes} per image")
    return rows, labels.astype(np.int64)
