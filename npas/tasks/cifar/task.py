"""Classify the 32x32 photographs of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009).

The dataset is the published "python version" under `data.root`, which torchvision reads too;
`data.download=true` downloads it. Files with other than the published checksums are refused unless
`data.verify=warn`. `data.val_fraction=0.1`, the default, holds out 5,000 training images for
validation; null trains on all. Augmentation is that of both papers: zero-padded random crops,
flips, and 16-pixel cutout unless `task.cutout=false`. Not from the papers: `task.label_smoothing`,
and `task.image_size=16` or 8, for CPUs, which averages squares of pixels and shrinks crops and
cutout alike.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks.cifar import synthetic
from npas.tasks.classification import Part, Recipe, Resident, hold_out
from npas.tasks.common import checksums, download
from npas.tasks.common.files import locked
from npas.tasks.common.unpickle import unpickle
from npas.utils.checks import at_least, below

if TYPE_CHECKING:
    from npas.config import DataConfig

PIXELS = 3 * 32 * 32
# Means and standard deviations of the channels, from the Wide ResNet authors.
RECIPES = {
    10: Recipe((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), padding=4, flip=True, cutout=16),
    100: Recipe((129.3, 124.1, 112.4), (68.2, 65.4, 70.4), padding=4, flip=True, cutout=16),
}
SHA256 = {
    10: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    100: "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
}


@dataclass
class Config:
    """The `task.*` keys of CIFAR."""

    family: str = "cifar"
    classes: int = 10
    cutout: bool = True
    label_smoothing: float = 0.0
    image_size: int = 32

    def __post_init__(self) -> None:
        if self.image_size not in (32, 16, 8):
            raise ValueError(f"task.image_size={self.image_size}: must be 32, 16 or 8")
        if self.classes not in RECIPES:
            raise ValueError(f"task.classes={self.classes}: CIFAR has 10 or 100 classes")
        at_least("task.label_smoothing", self.label_smoothing, 0)
        below("task.label_smoothing", self.label_smoothing, 1)


@dataclass(frozen=True)
class Archive:
    """The files of a CIFAR set with their md5 checksums, and the archive's sha256."""

    url: str
    filename: str
    sha256: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]


def published_archive(classes: int) -> Archive:
    """Return the published set's files as torchvision lists them, with our sha256 of the archive.

    The author published md5 checksums, which can be forged.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    known: Any = CIFAR10 if classes == 10 else CIFAR100
    return Archive(
        url=known.url,
        filename=known.filename,
        sha256=SHA256[classes],
        folder=known.base_folder,
        train=dict(known.train_list),
        test=dict(known.test_list),
    )


class Task(Resident):
    """Classify 32x32 colour images into 10 or 100 classes."""

    compared: checksums.Comparison

    def __init__(
        self,
        config: Config,
        data: DataConfig,
        *,
        seed: int,
        device: torch.device,
        archive: Archive | None = None,
    ) -> None:
        size, recipe = config.image_size, RECIPES[config.classes]
        self.factor = 32 // size
        cutout = recipe.cutout // self.factor if config.cutout else 0
        recipe = replace(recipe, padding=recipe.padding // self.factor, cutout=cutout)
        name, spec = f"cifar{config.classes}", InputSpec((3, size, size), config.classes)
        super().__init__(name, spec, recipe, data, seed=seed, device=device)
        self.label_smoothing = config.label_smoothing
        self.root = Path(data.root)
        self.download = data.download
        if archive is not None:
            self.archive = archive
        self.compared = checksums.Comparison(data.verify)

    @cached_property
    def archive(self) -> Archive:
        """Return the published files, once they are asked for: torchvision takes seconds."""
        return published_archive(self.spec.num_classes)

    def read(self) -> dict[str, Part]:
        """Read the dataset after downloading it or writing a synthetic one if necessary.

        Synthetic validation images are extra ones at the end, since `val_fraction` of a few images
        may be none.
        """
        if self.source == "real":
            self._ensure(self.archive)
            train, test = self._part(self.archive.train), self._part(self.archive.test)
            held_N = hold_out(train.labels, self.val_fraction, f"{self.name} validation")
        else:
            held_out = self.synthetic.test if self.has_validation else 0
            counts = (self.synthetic.train + held_out, self.synthetic.test)
            with tempfile.TemporaryDirectory() as folder:
                self.root = Path(folder)
                classes = self.spec.num_classes
                self.archive = synthetic.write(self.root, self.archive, classes, *counts)
                train, test = self._part(self.archive.train), self._part(self.archive.test)
            count = len(train.labels)
            held_N = torch.arange(count) >= count - held_out
        if not self.has_validation:
            return {"train": train, "test": test}
        train, val = train.split(held_N)
        return {"train": train, "test": test, "val": val}

    def inspect(self) -> dict[str, str]:
        """List the files with their checksums, and count the images of each part."""
        reference, files = "published" if self.source == "real" else self.source, {}
        for name, md5 in (self.archive.train | self.archive.test).items():
            file = f"{self.archive.folder}/{name}"
            found = self.compared.found[file]
            differs = found != f"md5 {md5}"
            files[file] = found + (f"; md5 {md5} was published" if differs else f", as {reference}")
        return files | super().inspect()

    def _ensure(self, archive: Archive) -> None:
        """Unpack the archive, downloaded first if necessary, unless all files exist."""
        members = [f"{archive.folder}/{name}" for name in (*archive.train, *archive.test)]
        packed = self.root / archive.filename

        def complete() -> bool:
            return all((self.root / member).is_file() for member in members)

        if complete():
            return
        if not packed.is_file() and not self.download:
            raise ValueError(
                f"{self.name} is not under data.root={self.root}: put {archive.filename} (or its "
                f"folder {archive.folder}) there, or set data.download=true"
            )
        with locked(self.root / f".{archive.filename}.lock"):
            if complete():  # another process was faster
                return
            is_new = not packed.is_file()
            if is_new:
                download.download(archive.url, packed)
            refuses = is_new or self.compared.verify == "refuse"
            download.unpack(packed, archive.sha256 if refuses else None, members, self.root)

    def _part(self, files: dict[str, str]) -> Part:
        """Read files of images, Nx3072 bytes (channel, row, column), into NHWC.

        A file's checksum is compared before it is unpickled.
        """
        rows, labels = [], []
        for name, md5 in files.items():
            path = self.root / self.archive.folder / name
            data = path.read_bytes()
            self.compared.add(
                f"{self.archive.folder}/{name}",
                checksums.md5(data),
                f"md5 {md5}",
                path=path,
                remedy="delete it, and data.download=true fetches the published set",
            )
            try:
                own_rows, own_labels = parse(unpickle(data), self.spec.num_classes)
            except ValueError as error:
                raise ValueError(f"{path} is not a CIFAR file: {error}") from error
            rows.append(own_rows)
            labels.append(own_labels)
        images_NCHW = torch.from_numpy(np.concatenate(rows)).view(-1, 3, 32, 32)
        if self.factor > 1:
            means = F.avg_pool2d(images_NCHW.float(), self.factor)
            images_NCHW = means.round().to(torch.uint8)
        images_NHWC = images_NCHW.permute(0, 2, 3, 1).contiguous()
        return Part(images_NHWC, torch.from_numpy(np.concatenate(labels)))


def parse(batch: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, Nx3072 bytes, and labels, N, of one file; raises ValueError if malformed."""
    key = "labels" if classes == 10 else "fine_labels"
    if not isinstance(batch, dict) or not {"data", key} <= batch.keys():
        raise ValueError(f"it lacks 'data' or {key!r}")
    rows, labels = batch["data"], np.asarray(batch[key])
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (PIXELS,):
        raise ValueError(f"its images are not rows of {PIXELS} bytes")
    if labels.dtype.kind != "i" or labels.shape != rows.shape[:1]:
        raise ValueError("it does not have one label per image")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"its labels are not 0 to {classes - 1}")
    return rows, labels.astype(np.int64)
