"""Read proposed boxes and their features from HDF5, and build batches of images with phrases.

A file has one matrix per image, named by its id, with a row per box, best first: features, then 5
numbers of the box's position (8 in old files of ReferIt, none in some; not used), then left, top,
right, bottom in pixels from 0. Processes must not share an open HDF5 file: it is closed before a
fork and opened by a process's first read.

All images of a batch have the same number of phrases and regions. If one has fewer, its own are
repeated, so that batch norms see real data only; repetitions are neither trained on nor counted.

Dimensions: B lots, P phrases each, T words per phrase, V numbers per word, R regions, D features
per region, N phrases and I images of the split.
"""

import logging
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from npas.tasks.base import Batch
from npas.tasks.common.word_vectors import Words
from npas.tasks.grounding.metrics import labels, overlaps
from npas.tasks.grounding.reading import Flat, Image
from npas.tasks.scenes.regions import places
from npas.utils import rng
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
        """Return the number of an image's boxes, without reading them; 0 if it is missing."""
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
        """Return features, RxD, and boxes, Rx4, float32, of the best `most` boxes or fewer.

        Raises ValueError if the image's data are damaged, or its boxes are empty or outside.
        """
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


class Lot(NamedTuple):
    """An image and the indices of at most P of its phrases."""

    image: int
    phrases: Sequence[int]


@dataclass
class Part:
    """A split: its phrases and word vectors in memory, and its region features on disk."""

    flat: Flat
    regions: Regions
    words: Words
    text_N: Tensor  # int64: index of each phrase's text in `words`
    phrases: int  # P
    most: int  # R

    def __len__(self) -> int:
        return len(self.there)

    @cached_property
    def there(self) -> list[int]:
        """Return the indices of the images that have features; the others are never read."""
        return np.flatnonzero(self.regions.rows_I).tolist()

    @cached_property
    def lots(self) -> list[Lot]:
        size = self.phrases
        return [
            Lot(i, own[start : start + size])
            for i, own in zip(self.there, map(self.flat.of_image, self.there), strict=True)
            for start in range(0, len(own), size)
        ]

    def drawn(self, index: int, key: int) -> Lot:
        """Draw up to P phrases of an image, in random order."""
        own = self.flat.of_image(index)
        order = rng.permutation(key, len(own), torch.device("cpu"))
        return Lot(index, [own[i] for i in order[: self.phrases].tolist()])

    def read(self, lots: Sequence[Lot]) -> Batch:
        """Return inputs and evaluation targets.

        The overlaps of phrases and regions, BxPxR; the numbers of regions without repetitions, B;
        the indices of the phrases, BxP, -1 for a repetition.
        """
        most, rows = self.most, len(lots)
        widths = self.regions.width, 5, 4
        regions_BRD, boxes_BR5, pixels_BR4 = (torch.empty(rows, most, w) for w in widths)
        number_BP = torch.full((rows, self.phrases), -1)
        shown_BP = torch.empty_like(number_BP)
        counts_B = torch.empty(rows, dtype=torch.int64)
        for row, (image, phrases) in enumerate(lots):
            features_RD, boxes_R4 = self.regions.read(image, most)
            counts_B[row] = len(boxes_R4)
            turn_R = np.arange(most) % len(boxes_R4)
            boxes_R4 = boxes_R4[turn_R]
            regions_BRD[row] = torch.from_numpy(features_RD[turn_R])
            size = self.flat.images[image][2:]
            boxes_BR5[row] = torch.from_numpy(places(boxes_R4, *size))
            pixels_BR4[row] = torch.from_numpy(boxes_R4)
            number_BP[row, : len(phrases)] = torch.tensor(phrases)
            shown_BP[row] = number_BP[row, torch.arange(self.phrases) % len(phrases)]
        words_BPTV, lengths_BP = self.words.take(self.text_N[shown_BP])
        inputs = {"words": words_BPTV, "lengths": lengths_BP}
        inputs |= {"regions": regions_BRD, "boxes": boxes_BR5}
        overlap_BPR = overlaps(torch.from_numpy(self.flat.boxes_N4[shown_BP.numpy()]), pixels_BR4)
        targets = {"overlaps": overlap_BPR, "regions": counts_B, "phrases": number_BP}
        return Batch(inputs, targets, rows)

    def training(
        self, lots: Sequence[Lot], keys: Sequence[int], positive: float, negatives: int
    ) -> Batch:
        """Return inputs, and labels of each phrase and region, BxPxR, int8; 0 for repetitions.

        `keys` seed the drawing of negatives, one key per lot.
        """
        batch = self.read(lots)
        overlap_BPR, counts_B = batch.targets["overlaps"], batch.targets["regions"]
        labels_BPR = torch.zeros_like(overlap_BPR, dtype=torch.int8)
        for row, (lot, key, count) in enumerate(zip(lots, keys, counts_B.tolist(), strict=True)):
            own = slice(0, len(lot.phrases)), slice(0, count)
            labels_BPR[row][own] = labels(overlap_BPR[row][own], positive, negatives, key)
        return batch._replace(targets={"labels": labels_BPR})
