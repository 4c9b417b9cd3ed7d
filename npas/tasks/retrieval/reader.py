"""Read images and sentences in the format of SCAN (Lee et al. 2018); features stay on disk.

For each split, a folder has `<split>_caps.txt`, five sentences per image, one per line;
`<split>_ims.npy`, floats of images x regions x features, where each image may be repeated for its
five sentences; and optionally `<split>_ids.txt`, the names of images or of sentences.

Dimensions: N images, B of them, R regions of each, D numbers of a region.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.utils.files import reading

PER_IMAGE = 5  # sentences
AT_ONCE = 64  # images that `check` reads at once
_PUT = "put the files there that docs/data.md names, or set data.source=synthetic"


@dataclass(frozen=True)
class Features:
    """The features of a split, in a file that each `read` opens, so that workers can share it."""

    path: Path
    images: int
    step: int  # rows per image: 1 or 5
    regions: int
    width: int

    def read(self, index_B: Tensor) -> Tensor:
        """Return the features of these images, BxRxD, float32.

        Raises ValueError if the file cannot be read, or features are NaN or infinite.
        """
        row_B = index_B.numpy() * self.step
        rows_BRD = np.asarray(_open(self.path)[row_B, : self.regions], np.float32)
        if not np.isfinite(rows_BRD).all():
            raise ValueError(f"{self.path} has non-finite numbers: get it again")
        return torch.from_numpy(rows_BRD)

    def check(self) -> None:
        for index_B in torch.arange(self.images).split(AT_ONCE):
            self.read(index_B)


@dataclass(frozen=True)
class Split:
    """One split: its features, sentences (five consecutive ones per image), and image names."""

    features: Features
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        return self.features.images


def read(folder: Path, split: str, regions: int, width: int) -> Split:
    """Read a split, but only the shape of its features.

    Raises ValueError if a file is missing, damaged, or inconsistent with the others.
    """
    captions, path = _lines(folder / f"{split}_caps.txt"), folder / f"{split}_ims.npy"
    array, count = _open(path), len(captions) // PER_IMAGE
    if array.ndim != 3 or array.dtype.kind != "f" or array.shape[1] < regions:
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, not floats of images x regions x"
            f" numbers with at least task.regions={regions}: get it again, or lower that"
        )
    if array.shape[2] != width:
        raise ValueError(f"{path} has {array.shape[2]} numbers a region: set task.region_width")
    path_ids = folder / f"{split}_ids.txt"
    names = _lines(path_ids) if path_ids.exists() else [str(i) for i in range(count)]
    sizes = (count, len(captions))
    if not count or len(captions) % PER_IMAGE or not {len(array), len(names)} <= set(sizes):
        raise ValueError(
            f"{folder} has {len(captions):,} lines in {split}_caps.txt, {PER_IMAGE} per image, and"
            f" {len(array):,} rows in {path.name} and {len(names):,} names, which do not fit: get"
            " them again"
        )
    names = [name.strip() for name in names[:: len(names) // count]]
    return Split(Features(path, count, len(array) // count, regions, width), captions, names)


def _lines(path: Path) -> list[str]:
    """Return a UTF-8 file's lines, split at LF or CRLF only, not at other line separators."""
    with reading(path, _PUT):
        lines = path.read_bytes().decode().split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _open(path: Path) -> np.ndarray:
    with reading(path, _PUT):
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    return array
