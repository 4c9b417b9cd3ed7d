"""Phrases, their boxes and images, for all datasets.

A box is (left, top, right, bottom) in pixels counted from 0, inclusive.

Dimensions: I images of a split, N phrases, C types.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MOST_MISSING = 3  # images without features that a split may have; or 1% of it, if that is more
# Keys of `Reading.counts`, of which each logs a warning.
CLIPPED, ODD_BOXES, ODD_PHRASES = WARNINGS = (
    "boxes clipped to their image", "boxes skipped, empty or outside", "malformed phrases skipped",
)  # fmt: skip

Box = tuple[float, float, float, float]


class Image(NamedTuple):
    """An image, its path and its size in pixels; the file may be missing."""

    id: str  # as in feature files
    path: Path
    width: int
    height: int


class Phrase(NamedTuple):
    """A phrase, the box that it refers to, and its types, if known."""

    text: str
    box: Box
    types: tuple[str, ...] = ()


@dataclass
class Reading:
    """The images of a split, the phrases of each, and counts of what was clipped and skipped."""

    images: list[Image] = field(default_factory=list)
    phrases: list[list[Phrase]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def inside(self, box: Box, last: tuple[float, float]) -> Box | None:
        """Clip a box to its image; returns None if it is empty or outside. Counts both problems.

        `last` is the largest valid x and y.
        """
        left, top, right, bottom = box
        is_empty = not (left <= right and top <= bottom)  # also true for NaN
        if is_empty or right < 0 or bottom < 0 or left > last[0] or top > last[1]:
            self.counts[ODD_BOXES] += 1
            return None
        clipped = max(left, 0), max(top, 0), min(right, last[0]), min(bottom, last[1])
        self.counts[CLIPPED] += clipped != box
        return clipped


@dataclass(frozen=True)
class Flat:
    """The phrases of all images that have any, as arrays.

    A million small objects would be copied into every forked worker as their reference counts
    change.
    """

    images: list[Image]
    first_J: np.ndarray  # int64, J = I + 1: image i has phrases first_J[i] to first_J[i+1] - 1
    texts: list[str]  # without duplicates
    text_N: np.ndarray  # int64: index of each phrase's text
    boxes_N4: np.ndarray  # float32
    types: list[str]  # sorted
    is_type_NC: np.ndarray  # bool: a phrase may be of several types

    @classmethod
    def of(cls, reading: Reading) -> Flat:
        """Convert the lists of a `Reading` to arrays."""
        pairs = zip(reading.images, reading.phrases, strict=True)
        with_any = [(image, own) for image, own in pairs if own]
        every = [phrase for _, own in with_any for phrase in own]
        number: dict[str, int] = {}
        text_N = [number.setdefault(phrase.text, len(number)) for phrase in every]
        types = sorted({name for phrase in every for name in phrase.types})
        is_type = [[name in phrase.types for name in types] for phrase in every]
        return cls(
            [image for image, _ in with_any],
            np.cumsum([0, *(len(own) for _, own in with_any)]),
            list(number),
            np.array(text_N, dtype=np.int64),
            np.array([phrase.box for phrase in every], dtype=np.float32).reshape(-1, 4),
            types,
            np.array(is_type, dtype=bool).reshape(len(every), len(types)),
        )

    def __len__(self) -> int:
        return len(self.text_N)

    def text(self, number: int) -> str:
        return self.texts[self.text_N[number]]

    def of_image(self, index: int) -> range:
        return range(int(self.first_J[index]), int(self.first_J[index + 1]))

    def image_of(self, number: int) -> int:
        return int(np.searchsorted(self.first_J, number, side="right")) - 1


def warn(name: str, found: Mapping[str, Reading]) -> None:
    """Log a warning of what was clipped or skipped in a dataset."""
    counts = {what: sum(own.counts[what] for own in found.values()) for what in WARNINGS}
    if any(counts.values()):
        lines = [f"{count:,} {what}" for what, count in counts.items() if count]
        log.warning("%s: %s", name, ", ".join(lines))
