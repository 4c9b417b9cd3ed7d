"""Read images and sentences in the format of SCAN (Lee et al. 2018); features stay on disk.

For each split, a folder has `<split>_caps.txt`, five sentences per image, one per line;
`<split>_ims.npy`, floats of images x regions x features, where each image may be repeated for its
five sentences; and optionally `<split>_ids.txt`, the names of images or of sentences.

Dimensions: N images, B of them, R regions of each, D numbers of a region.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.tasks.common.files import reason

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
        is_finite_B = np.isfinite(rows_BRD).all((1, 2))
        if not is_finite_B.all():
            row = row_B[int(is_finite_B.argmin())]
            raise ValueError(f"{self.path} has non-finite numbers in row {row}: get it again")
        return torch.from_numpy(rows_BRD)

    def check(self) -> None:
        """Read all features; raises ValueError if any is NaN or infinite."""
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
    captions = _lines(folder / f"{split}_caps.txt")
    if not captions or len(captions) % PER_IMAGE:
        raise ValueError(
            f"{folder / f'{split}_caps.txt'} has {len(captions):,} lines, not {PER_IMAGE} per"
            " image: get it again"
        )
    count = len(captions) // PER_IMAGE
    path = folder / f"{split}_ims.npy"
    array = _open(path)
    if array.ndim != 3 or array.dtype.kind != "f" or len(array) not in (count, len(captions)):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, not floats of {count:,} images"
            f" (or {len(captions):,} sentences) x regions x numbers: get it again"
        )
    if array.shape[1] < regions or array.shape[2] != width:
        raise ValueError(
            f"{path} has {array.shape[1]} regions per image of {array.shape[2]} numbers: set"
            f" task.regions to at most {array.shape[1]}, not {regions}, and task.region_width to"
            f" {array.shape[2]}, not {width}"
        )
    path_ids = folder / f"{split}_ids.txt"
    names = _lines(path_ids) if path_ids.exists() else [str(i) for i in range(count)]
    if len(names) not in (count, len(captions)):
        raise ValueError(
            f"{path_ids} has {len(names):,} names, for {count:,} images of {PER_IMAGE} sentences:"
            " get it again, or leave it out"
        )
    names = [name.strip() for name in names[:: len(names) // count]]
    return Split(Features(path, count, len(array) // count, regions, width), captions, names)


def _lines(path: Path) -> list[str]:
    """Return a UTF-8 file's lines, split at LF or CRLF only, not at other line separators."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({reason(error)}): {_PUT}") from None
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _open(path: Path) -> np.ndarray:
    """Memory-map an array."""
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # broken files raise many kinds of errors
        raise ValueError(f"{path} cannot be read ({reason(error)}): {_PUT}") from None
    return array
