"""Read the boxes proposed for images and their features from an HDF5 file, as they are used.

A file holds a matrix an image under the image's id, a row a box, the best one first: features, then
5 numbers of where the box lies (8 in old files of ReferIt, none in some), then the box itself as
left, top, right and bottom in pixels. It is what scripts/extract_regions.py writes, and CITE's own
tools did, whose other entries are not read. Where a box lies is worked out from its pixels here.

CITE's files may differ in what no reader can tell: their images may be named otherwise than by the
set's ids, which are then found missing, and their boxes, made in MATLAB, may count pixels from 1.
They are taken to count from 0, a pixel off; subtract 1 from the last 4 numbers before.

A file is closed before a process is forked, and opened when a process first reads: two that share
an open one would share its descriptor, and what the library knows of it.

Dimensions: R rows, D features, I images.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from npas.tasks.common.files import reason
from npas.tasks.grounding.phrases import Image, too_many

BEHIND = (4, 9, 12)  # numbers that may stand behind a row's features, the box's own 4 the last ones
_AGAIN = "move it away and run scripts/extract_regions.py again"


class Regions:
    """The features of a split's images, which stay in their file.

    `rows_I` counts each image's regions, `missing` names images that have none. ValueError, one
    line, if these are too many, or rows are not `width` features and a box.
    """

    def __init__(self, path: Path, images: Sequence[Image], width: int) -> None:
        self.path = path
        self.images = images
        self.width = width
        self._file: Any = None  # open, once this process has read
        with self._open() as file:
            self.rows_I = np.array([self._rows(file, image.id) for image in images], dtype=np.int64)
        self.missing = [
            image.id for image, rows in zip(images, self.rows_I, strict=True) if not rows
        ]
        missing, all_of_them = len(self.missing), len(images)
        if too_many(missing, all_of_them) or missing == all_of_them:
            raise ValueError(
                f"{path} has no features of {missing:,} of {all_of_them:,} images (first:"
                f" {self.missing[0]}), and up to 1% may be missing: run scripts/extract_regions.py,"
                " which adds them to a file of its own and names those it cannot read"
            )
        os.register_at_fork(before=functools.partial(_close, weakref.ref(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file out, where a process is started with a copy."""
        return {**self.__dict__, "_file": None}

    def close(self) -> None:
        """Close the file, until something is read again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> Any:
        try:
            # Reading needs no lock, which some network file systems do not have.
            return h5py.File(self.path, "r", locking="best-effort")
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be read as HDF5 ({reason(error)}): extract the regions'"
                f" features with scripts/extract_regions.py, or put CITE's there; if it is damaged,"
                f" {_AGAIN}"
            ) from None

    def _rows(self, file: Any, name: str) -> int:
        """Count an image's boxes, without reading them: 0 if it is not there."""
        if name not in file:
            return 0
        try:
            matrix = h5py.h5d.open(file.id, name.encode())
            shape, dtype = matrix.shape, matrix.dtype
        except (OSError, RuntimeError, KeyError) as error:
            raise self._damaged(name, reason(error)) from None
        if len(shape) != 2 or not shape[0] or dtype.kind != "f":
            raise self._damaged(name, f"it is {dtype} of shape {shape}, and no row a box")
        if shape[1] - self.width not in BEHIND:
            raise ValueError(
                f"{self.path}: image {name} has rows of {shape[1]} numbers, which are not"
                f" task.region_width={self.width} features and 4, 5 + 4 or 8 + 4 of a box: set"
                f" task.region_width={max(1, shape[1] - 9)}, or extract others"
            )
        return int(shape[0])

    def _damaged(self, name: str, said: str) -> ValueError:
        return ValueError(f"{self.path}: image {name} is damaged ({said}): {_AGAIN}")

    def read(self, index: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features, RxD, and boxes, Rx4, float32, of up to `most` boxes, the best ones.

        ValueError, one line, for an image whose data are damaged or make no sense.
        """
        if self._file is None:
            self._file = self._open()
        image = self.images[index]
        try:
            matrix_RX = self._file[image.id][:most].astype(np.float32, copy=False)
        except (OSError, RuntimeError, KeyError) as error:
            raise self._damaged(image.id, reason(error)) from None
        if not np.isfinite(matrix_RX).all():
            raise self._damaged(image.id, "it has numbers that are not finite")
        boxes_R4 = matrix_RX[:, -4:]
        size_2 = np.array([image.width, image.height])
        low_R2, high_R2 = boxes_R4[:, :2], boxes_R4[:, 2:]
        is_wrong_R2 = (high_R2 < low_R2) | (high_R2 < 0) | (low_R2 > size_2)
        # A detector's box may stick out a little; by a whole image it is of another one.
        is_wrong_R2 |= (low_R2 < -size_2) | (high_R2 > 2 * size_2)
        if is_wrong_R2.any():
            box = " ".join(f"{value:g}" for value in boxes_R4[int(is_wrong_R2.any(1).argmax())])
            raise ValueError(
                f"{self.path}: box {box} of image {image.id}, {image.width}x{image.height} pixels,"
                " is empty or lies outside it: boxes must be left, top, right, bottom in the pixels"
                " of that image"
            )
        return matrix_RX[:, : self.width], boxes_R4


def _close(regions: weakref.ref[Regions]) -> None:
    """Close the file of regions that are still there."""
    found = regions()
    if found is not None:
        found.close()


def places(boxes_R4: np.ndarray, image: Image) -> np.ndarray:
    """Return where boxes lie, Rx5: their edges and their area, as parts of the image's."""
    sides_4 = np.array([image.width, image.height] * 2, dtype=np.float32)
    left_R, top_R, right_R, bottom_R = boxes_R4.T
    area_R = (right_R - left_R + 1) * (bottom_R - top_R + 1) / (image.width * image.height)
    return np.concatenate([boxes_R4 / sides_4, area_R[:, None]], 1).astype(np.float32)
