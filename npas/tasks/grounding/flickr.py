"""Read Flickr30K Entities (Plummer et al. 2017): captions, their phrases and the phrases' boxes.

    flickr30k_entities/train.txt                     an image's id a line; val.txt, test.txt
    flickr30k_entities/Sentences/1000092795.txt      five captions
    flickr30k_entities/Annotations/1000092795.xml    boxes of chains, counted from 1
    flickr30k_entities/UNRELATED_CAPTIONS            "id number": captions of some other image
    flickr30k_entities/flickr30k-images/1000092795.jpg

A phrase stands in its caption as `[/EN#chain/type/type words]`. Phrases of one chain speak of the
same things; chain 0 is of things that cannot be seen. A chain has boxes, or is said to have none,
being the whole scene or nowhere. The box of a phrase is the smallest around all of its chain.

Captions of some other image are left out of every split. The published list has 21, all of training
images.

A chain of which a box is empty or outside the image is taken to have none, and what stands in a
caption as no such phrase is passed over; both are counted and warned of.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from npas.tasks.common.files import reason
from npas.tasks.grounding.phrases import (
    BOXES,
    BOXLESS,
    CAPTIONS,
    GARBLED,
    ODD_PHRASES,
    SPLITS,
    UNANNOTATED,
    UNRELATED,
    WORDLESS,
    Box,
    Image,
    Phrase,
    Reading,
    check_apart,
    inside,
    log,
    read_lines,
    warn,
)

FOLDER = "flickr30k_entities"
# What is published: images of each split, and captions of all of them.
PUBLISHED = {"train": 29_783, "val": 1_000, "test": 1_000}
PUBLISHED_CAPTIONS = 158_915
NOT_VISIBLE = "0"  # the chain

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\[\]]+)*)\s*([^\[\]]*)\]")
_UNPACK = "unpack annotations.zip of github.com/BryanPlummer/flickr30k_entities again"
_SPLIT = "put the split's file of github.com/BryanPlummer/flickr30k_entities there"


class Mention(NamedTuple):
    """A phrase of a caption as it is written there."""

    chain: str
    types: tuple[str, ...]
    text: str


def ids(folder: Path, split: str) -> list[str]:
    """List the images of a split. ValueError if its file cannot be read."""
    found = read_lines(folder / f"{split}.txt", _SPLIT)
    if not found:
        raise ValueError(f"{folder / split}.txt names no image: {_SPLIT}")
    for name in found:
        if not re.fullmatch(r"[\w-]+", name):  # it becomes part of paths
            raise ValueError(f"{folder / split}.txt: {name!r} is no image's id; {_SPLIT}")
    return found


def image_path(folder: Path, name: str) -> Path:
    """Return where an image lies."""
    return folder / "flickr30k-images" / f"{name}.jpg"


def read(folder: Path) -> dict[str, Reading]:
    """Read all three splits. ValueError, one line, for what is missing or malformed."""
    named = {split: ids(folder, split) for split in SPLITS}
    check_apart(named, str(folder))
    left_out = unrelated(folder / "UNRELATED_CAPTIONS")
    found = {split: _read(folder, own, left_out) for split, own in named.items()}
    warn(FOLDER, found, _UNPACK)
    return found


def unrelated(path: Path) -> set[tuple[str, int]]:
    """Return which captions are of some other image: its id, and the caption's number from 1 on.

    Without the file, all are taken to be the image's own, with a warning. ValueError if it is no
    list of captions.
    """
    if not path.exists():
        log.warning("%s is not there: captions of some other image are not left out", path)
        return set()
    found = set()
    for line in read_lines(path, _SPLIT):
        if line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 2 or not parts[1].isdecimal():
            raise ValueError(f"{path}: {line[:80]!r} is no id and a number; {_SPLIT}")
        found.add((parts[0], int(parts[1])))
    return found


def _read(folder: Path, named: list[str], left_out: set[tuple[str, int]]) -> Reading:
    reading = Reading()
    counts = reading.counts
    for name in named:
        text_path = folder / "Sentences" / f"{name}.txt"
        captions, odd = read_captions(text_path)
        path = folder / "Annotations" / f"{name}.xml"
        image, boxes, without = read_annotation(path, image_path(folder, name), name)
        last = image.width - 1, image.height - 1
        clipped = {}
        for chain, own in boxes.items():
            cut = [inside(box, image, last, reading, str(path)) for box in own]
            whole = [box for box in cut if box is not None]
            if len(whole) == len(own):
                clipped[chain] = _around(whole)
            else:
                without.add(chain)
        for number in odd:
            reading.note(ODD_PHRASES, f"caption {number} of {text_path}")
            reading.spoiled.add(name)
        counts[BOXLESS] += len(odd)
        counts[CAPTIONS] += len(captions)
        counts[BOXES] += sum(map(len, boxes.values()))
        phrases = []
        for number, mentions in enumerate(captions, 1):
            if (name, number) in left_out:
                counts[UNRELATED] += 1
                continue
            for chain, types, text in mentions:
                if "\ufffd" in text:
                    reading.note(GARBLED, str(text_path))
                if not text:
                    counts[WORDLESS] += 1
                elif chain in clipped:
                    phrases.append(Phrase(text, clipped[chain], types))
                else:
                    counts[BOXLESS] += 1
                    if chain != NOT_VISIBLE and chain not in without:
                        reading.note(UNANNOTATED, f"chain {chain} of {path}")
        reading.images.append(image)
        reading.phrases.append(phrases)
    return reading


def read_captions(path: Path) -> tuple[list[list[Mention]], list[int]]:
    """Return the phrases of each caption, and the caption, from 1 on, of each that is malformed.

    ValueError for a file that is missing or has no caption.
    """
    captions, odd = [], []
    for number, line in enumerate(read_lines(path, _UNPACK), 1):
        found = [
            Mention(chain, tuple(types.split("/")[1:]), " ".join(words.split()))
            for chain, types, words in _PHRASE.findall(line)
        ]
        odd += [number] * (line.count("[/EN#") - len(found))
        captions.append(found)
    if not captions:
        raise ValueError(f"{path} has no caption: {_UNPACK}")
    return captions, odd


def read_annotation(
    path: Path, image: Path, name: str
) -> tuple[Image, dict[str, list[Box]], set[str]]:
    """Return the image, the boxes of each chain, counted from 0, and the chains without one.

    ValueError, one line, for a file that is missing or malformed.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: {_UNPACK}") from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        # The last two are of an encoding that is unknown, or not the text's.
        raise ValueError(f"{path} cannot be read as XML ({reason(error)}): {_UNPACK}") from None
    try:
        width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
        if width < 1 or height < 1:
            raise ValueError(f"its size is {width}x{height}")
        boxes: dict[str, list[Box]] = {}
        without: set[str] = set()
        for thing in root.iter("object"):
            chains = [(element.text or "").strip() for element in thing.findall("name")]
            if not all(chains) or not chains:
                raise ValueError("an object has no name")
            box = thing.find("bndbox")
            if box is None:
                without.update(chains)
                continue
            left, top, right, bottom = (
                _number(box, side) - 1 for side in ("xmin", "ymin", "xmax", "ymax")
            )
            for chain in chains:
                boxes.setdefault(chain, []).append((left, top, right, bottom))
    except ValueError as error:
        raise ValueError(f"{path} is no annotation of {FOLDER} ({error}): {_UNPACK}") from None
    return Image(name, image, width, height), boxes, without


def _number(element: ElementTree.Element, name: str) -> int:
    text = (element.findtext(name) or "").strip()
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise ValueError(f"{name} is {text[:40]!r}" if text else f"it has no {name}")
    return int(text)


def _around(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)
