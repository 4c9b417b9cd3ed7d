"""Which phrase refers to which box of which image, for all data sets.

A box is (left, top, right, bottom) in pixels counted from 0; right and bottom belong to it.

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
MOST_BAD = 3  # images that a split may lack or that may be odd, or a hundredth of it

Box = tuple[float, float, float, float]


class Counted:
    """What a reading counts."""

    CAPTIONS, BOXES = "captions", "boxes"
    UNRELATED = "captions of some other image"
    BOXLESS, WORDLESS = "phrases without a box", "phrases without a word"
    CLIPPED, ODD_BOXES, ODD_PHRASES = "boxes clipped", "odd boxes", "odd phrases"


# Of these, what is to be warned of.
STRANGE = {
    Counted.CLIPPED: "boxes reach beyond their image and were clipped to it",
    Counted.ODD_BOXES: "boxes are empty or outside their image: their phrases are left out",
    Counted.ODD_PHRASES: "phrases are left out, no [/EN#chain/type words] or of no known chain",
}


class Image(NamedTuple):
    """An image, where it lies and its size in pixels; the file itself may be missing."""

    id: str  # as feature files name it
    path: Path
    width: int
    height: int


class Phrase(NamedTuple):
    """A phrase, the box that it refers to, and what kinds of things it is of, if known."""

    text: str
    box: Box
    types: tuple[str, ...] = ()


@dataclass
class Reading:
    """What was read of a split: its images, the phrases of each, and counts by what they are.

    `odd` notes where something strange was met first, by what it is, and `spoiled` the ids of
    images of which something is left out for it.
    """

    images: list[Image] = field(default_factory=list)
    phrases: list[list[Phrase]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    odd: dict[str, str] = field(default_factory=dict)
    spoiled: set[str] = field(default_factory=set)

    def note(self, what: str, where: str, spoils: str | None = None) -> None:
        """Count something strange, of which `where` is kept if it is the first."""
        self.counts[what] += 1
        self.odd.setdefault(what, where)
        if spoils is not None:
            self.spoiled.add(spoils)

    def inside(self, box: Box, image: Image, last: tuple[float, float], where: str) -> Box | None:
        """Return the part of a box that lies in its image; None if it is empty or wholly outside.

        `last` are the greatest x and y that a box may have. A box that an annotator drew past the
        edge still says what is meant, and keeps its phrase: it is clipped. Either is noted.
        """
        left, top, right, bottom = box
        is_empty = not (left <= right and top <= bottom)  # also where one is not a number
        if is_empty or right < 0 or bottom < 0 or left > last[0] or top > last[1]:
            self.note(
                Counted.ODD_BOXES, f"{left:g} {top:g} {right:g} {bottom:g}, {where}", image.id
            )
            return None
        clipped = max(left, 0), max(top, 0), min(right, last[0]), min(bottom, last[1])
        if clipped != box:
            self.note(Counted.CLIPPED, where)
        return clipped


@dataclass(frozen=True)
class Flat:
    """The phrases of images that have at least one, as arrays.

    Lists of a million small objects would be copied into every worker, page by page.
    """

    images: list[Image]
    first_J: np.ndarray  # int64, J = I + 1: image i has the phrases first_J[i] .. first_J[i+1]-1
    texts: list[str]  # each once
    text_N: np.ndarray  # int64: which of them
    boxes_N4: np.ndarray  # float32
    types: list[str]  # sorted
    is_type_NC: np.ndarray  # bool: a phrase may be of several types

    @classmethod
    def of(cls, reading: Reading) -> Flat:
        """Lay out what was read."""
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
        """Return a phrase."""
        return self.texts[self.text_N[number]]

    def of_image(self, index: int) -> range:
        """Return the numbers of an image's phrases."""
        return range(int(self.first_J[index]), int(self.first_J[index + 1]))

    def image_of(self, number: int) -> int:
        """Return the image that a phrase is of."""
        return int(np.searchsorted(self.first_J, number, side="right")) - 1


def too_many(count: int, images: int) -> bool:
    """Return whether so many bad images of a split are no accident: over 1% of them, and over 3."""
    return count > MOST_BAD and 100 * count > images


def warn(name: str, found: Mapping[str, Reading], remedy: str) -> None:
    """Warn, a line each, of what is strange in a data set, and say what becomes of it.

    ValueError, with the remedy, where something is left out of too many images of a split.
    """
    for split, reading in found.items():
        if too_many(len(reading.spoiled), len(reading.images)):
            first = reading.odd.get(Counted.ODD_BOXES) or reading.odd[Counted.ODD_PHRASES]
            raise ValueError(
                f"{name}: {len(reading.spoiled):,} of the {len(reading.images):,} images of {split}"
                f" have boxes or phrases that make no sense (first: {first}): {remedy}"
            )
    for what, line in STRANGE.items():
        count = sum(reading.counts[what] for reading in found.values())
        if count:
            first = next(reading.odd[what] for reading in found.values() if what in reading.odd)
            log.warning("%s: %s %s (first: %s)", name, f"{count:,}", line, first)


def spread(count: int, wanted: int) -> list[int]:
    """Return up to so many of `count` numbers, evenly spread."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]
