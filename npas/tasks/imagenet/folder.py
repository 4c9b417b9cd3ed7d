"""Read images from one folder per class, as `torchvision.datasets.ImageFolder` does.

    imagenet/train/n01440764/n01440764_10026.JPEG
    imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG

Classes are numbered in the order of sorted folder names. File names are kept in an array: a million
Python strings would be copied into every forked worker as their reference counts change.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import torch


class Folder:
    """The images of one split, N, with their labels.

    `count` is the number of classes, `classes` their expected folder names (None: any). Raises
    ValueError for wrong class folders or a class without images.
    """

    def __init__(self, path: Path, count: int, classes: list[str] | None = None) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        self.path = path
        self.classes = class_folders(path)
        if odd := sorted(set(self.classes) ^ set(classes or self.classes)):
            verb, other = "holds" if odd[0] in self.classes else "lacks", path.parent / "train"
            raise ValueError(f"{path} {verb} the class folder {odd[0]}, unlike {other}")
        if len(self.classes) != count:
            found = len(self.classes)
            raise ValueError(
                f"{path} holds {found:,} class folders, not the {count:,} of task.classes: put all"
                f" classes there, or set task.classes={found}"
            )
        number = {name: i for i, name in enumerate(self.classes)}
        try:
            found = make_dataset(str(path), number, IMG_EXTENSIONS)
        except FileNotFoundError as error:  # a class without images
            raise ValueError(f"{path}: {error}") from None
        start = len(str(path)) + 1
        self.names_N = np.array([os.fsencode(name[start:]) for name, _ in found], dtype=np.bytes_)
        self.labels_N = torch.tensor([label for _, label in found])

    def relative(self, index: int) -> str:
        return os.fsdecode(self.names_N[index].item())

    def name(self, index: int) -> str:
        return str(self.path / self.relative(index))

    def read(self, index: int) -> bytearray:
        with open(os.path.join(self.path, self.relative(index)), "rb") as file:
            return bytearray(file.read())

    def total_bytes(self) -> int:
        """Return the total size of all image files; 0 for one that cannot be read."""
        total = 0
        for i in range(len(self.names_N)):
            with contextlib.suppress(OSError):  # of a broken symbolic link
                total += os.stat(self.name(i)).st_size
        return total


def class_folders(path: Path) -> list[str]:
    """List the class folders of a split, sorted; raises ValueError if there are none."""
    found = (
        sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if path.is_dir() else []
    )
    if not found:
        raise ValueError(f"{path} holds no class folders: put each image into its class's folder")
    return found
