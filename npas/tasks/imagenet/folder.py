"""Read images from one folder per class, as `torchvision.datasets.ImageFolder` does.

    imagenet/train/n01440764/n01440764_10026.JPEG
    imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG

Classes are numbered in the order of sorted folder names. File names are kept in an array: a million
Python strings would be copied into every forked worker as their reference counts change.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

from npas.utils.progress import track

log = logging.getLogger(__name__)

# Those of torchvision's ImageFolder.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Folder:
    """The images of one split, N, with their labels.

    `count` is the number of classes, `classes` their expected folder names (None: any). Logs a
    warning for entries of class folders that are not image files, except hidden ones. Raises
    ValueError for wrong class folders or a class without images.
    """

    def __init__(self, path: Path, count: int, classes: list[str] | None = None) -> None:
        self.path = path
        self.classes = class_folders(path)
        if odd := sorted(set(self.classes) ^ set(classes or self.classes)):
            verb = "holds" if odd[0] in self.classes else "lacks"
            other = path.parent / "train"
            raise ValueError(f"{path} {verb} the class folder {odd[0]}, unlike {other}")
        if len(self.classes) != count:
            found = len(self.classes)
            raise ValueError(
                f"{path} holds {found:,} class folders, not the {count:,} of task.classes: put all"
                f" classes there, or set task.classes={found}"
            )
        names: list[bytes] = []
        counts, left_out = [], []
        for label in track(self.classes, f"listing the classes of {path.name}"):
            entries = {os.path.join(label, e.name): e.is_file() for e in _visible(path / label)}
            own = sorted(name for name, is_file in entries.items() if is_file and _is_image(name))
            if not own:
                raise ValueError(f"{path / label} holds no image ({', '.join(ENDINGS)})")
            left_out += sorted(entries.keys() - set(own))
            names += map(os.fsencode, own)
            counts.append(len(own))
        if left_out:
            text = "%s: %d entries of its class folders are skipped, not image files: %s%s"
            log.warning(text, path, len(left_out), left_out[0], ", ..." * (len(left_out) > 1))
        self.names_N = np.array(names, dtype=np.bytes_)
        self.labels_N = torch.arange(count).repeat_interleave(torch.tensor(counts))

    def relative(self, index: int) -> str:
        """Return an image's path below the split's folder: class and file."""
        return os.fsdecode(self.names_N[index].item())

    def name(self, index: int) -> str:
        """Return an image's path."""
        return str(self.path / self.relative(index))

    def read(self, index: int) -> bytearray:
        """Return an image's encoded bytes; raises OSError if it cannot be read."""
        with open(os.path.join(self.path, self.relative(index)), "rb") as file:
            return bytearray(file.read())

    def total_bytes(self) -> int:
        """Return the total size of all image files."""
        return sum(os.stat(self.name(i)).st_size for i in range(len(self.names_N)))


def class_folders(path: Path) -> list[str]:
    """List the class folders of a split, sorted; raises ValueError if `path` is not a split's."""
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    found = _visible(path)
    folders = sorted(entry.name for entry in found if entry.is_dir())
    if not folders and any(_is_image(entry.name) for entry in found):
        raise ValueError(f"{path} holds images and no class folders: move each into its class's")
    return folders


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """List entries that are not hidden; some systems write "._n01440764_18.JPEG" beside a file."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if entry.name[0] != "."]


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)
