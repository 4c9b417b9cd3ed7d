"""Read proposed boxes and their features from an HDF5 file, on demand.

The file has one matrix per image, named by its id, with a row per box, best first: features, then 5
numbers of the box's position (8 in old files of ReferIt, none in some; not used), then left, top,
right and bottom in pixels from 0. Processes must not share an open HDF5 file: it is closed before a
fork and opened by a process's first read.

Dimensions: R rows, D features, I images.
"""

import logging
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from npas.tasks.grounding.reading import Image
from npas.utils.files import reading

log = logging.getLogger(__name__)

MOST_MISSING = 3  # images without features that a split may have; or 1% of it, if that is more
BOX_WIDTHS = (4, 9, 12)  # possible counts of numbers after the features; the last 4 are the box
_AGAIN = "extract the regions' features again with scripts/extract_regions.py, or put CITE's there"


class Regions:
    """The features of a split's images, which stay on disk.

    `rows_I` is the number of regions of each image, `missing` the ids of images without any.
    Raises ValueError if these are too many, or rows are not `width` features and a box.
    """

    def __init__(self, path: Path, images: Sequence[Image], width: int) -> None:
        self.path, self.images, self.width = path, images, width
        self._file: Any = None  # opened by this process's first read
        with self._open() as file:
            self.rows_I = np.array([self._rows(file, image.id) for image in images], dtype=np.int64)
        self.missing = [
            image.id for image, rows in zip(images, self.rows_I, strict=True) if not rows
        ]
        missing, total = len(self.missing), len(images)
        if missing == total or (missing > MOST_MISSING and 100 * missing > total):
            raise ValueError(
                f"{path} has no features of {missing:,} of {total:,} images (first:"
                f" {self.missing[0]}), and up to 1% may be missing: run scripts/extract_regions.py,"
                " which adds them to its own files and names images that it cannot read"
            )
        if missing:
            log.warning(
                "%s has no features of %d of %d images (first: %s): they are not trained on, and"
                " their phrases count as wrong", *(path, missing, total, self.missing[0])
            )  # fmt: skip
        close = weakref.WeakMethod(self.close)
        os.register_at_fork(before=lambda: (own := close()) and own())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open file, for processes that are not forked."""
        return {**self.__dict__, "_file": None}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> Any:
        with reading(self.path, _AGAIN):
            # Reading needs no lock, which some network file systems do not have.
            return h5py.File(self.path, "r", locking="best-effort")

    def _rows(self, file: Any, name: str) -> int:
        """Return the number of an image's boxes; 0 if it is missing."""
        if (found := file.get(name)) is None:
            return 0
        shape: tuple[int, ...] = getattr(found, "shape", (0,))  # a group has none
        if len(shape) != 2 or shape[1] - self.width not in BOX_WIDTHS:
            raise ValueError(
                f"{self.path}: image {name} has numbers of shape {shape}, not rows of"
                f" task.region_width={self.width} features and 4, 5 + 4 or 8 + 4 of a box: set"
                f" task.region_width={max(1, shape[-1] - 9)}, or extract others"
            )
        return int(shape[0])

    def read(self, index: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features, RxD, and boxes, Rx4, float32, of the best `most` boxes or fewer."""
        if self._file is None:
            self._file = self._open()
        image = self.images[index]
        with reading(f"{self.path}: image {image.id}", _AGAIN):
            matrix_RX = self._file[image.id][:most].astype(np.float32, copy=False)
        boxes_R4 = matrix_RX[:, -4:]
        size_2 = np.array([image.width, image.height])
        low_R2, high_R2 = boxes_R4[:, :2], boxes_R4[:, 2:]
        # A detector's box may exceed the image a little; by a whole image it is another image's.
        is_right_R2 = (low_R2 <= high_R2) & (high_R2 >= 0) & (low_R2 <= size_2)
        is_right_R2 &= (low_R2 >= -size_2) & (high_R2 <= 2 * size_2)
        if not (is_right_R2.all() and np.isfinite(matrix_RX).all()):
            raise ValueError(
                f"{self.path}: image {image.id}, {image.width}x{image.height} pixels, has numbers"
                " that are not finite, or boxes that are empty or outside: boxes must be left, top,"
                " right, bottom in the pixels of that image"
            )
        return matrix_RX[:, : self.width], boxes_R4
