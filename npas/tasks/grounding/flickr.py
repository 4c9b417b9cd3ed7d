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
from xml.etree import ElementTree

from npas.tasks.common.files import reason
from npas.tasks.grounding.phrases import SPLITS, Box, Counted, Image, Phrase, Reading, log, warn
from npas.utils.progress import track

FOLDER = "flickr30k_entities"
# Images of each split.
PUBLISHED = {"train": 29_783, "val": 1_000, "test": 1_000}
NOT_VISIBLE = "0"  # the chain

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\[\]]+)*)\s*([^\[\]]*)\]")
_UNPACK = "unpack github.com/BryanPlummer/flickr30k_entities and its annotations.zip again"


def read(folder: Path) -> dict[str, Reading]:
    """Read all three splits. ValueError, one line, for what is missing or malformed."""
    named = {split: _lines(folder / f"{split}.txt") for split in SPLITS}
    seen: set[str] = set()
    for split, own in named.items():
        for name in own:
            if not re.fullmatch(r"[\w-]+", name) or name in seen:  # it becomes part of paths
                said = "named twice" if name in seen else "no image's id"
                raise ValueError(f"{folder / split}.txt: {name!r} is {said}: {_UNPACK}")
            seen.add(name)
    left_out = unrelated(folder / "UNRELATED_CAPTIONS")
    found = {split: _read(folder, own, left_out) for split, own in named.items()}
    warn(FOLDER, found, _UNPACK)
    return found


def unrelated(path: Path) -> set[tuple[str, str]]:
    """Return which captions are of some other image: its id, and the caption's number from 1 on.

    Without the file, all are taken to be the image's own, with a warning. ValueError if it is no
    list of captions.
    """
    if not path.exists():
        log.warning("%s is not there: captions of some other image are not left out", path)
        return set()
    found = set()
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, number = line.strip().partition(" ")
            if not number.isdecimal():
                raise ValueError(f"{path}: {line[:80]!r} is no id and a number: {_UNPACK}")
            found.add((name, number))
    return found


def _lines(path: Path) -> list[str]:
    """Return the lines that say something. ValueError if there are none.

    Texts come in UTF-8, a few of them with a mark at the start; U+FFFD stands for what is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason(error)}): {_UNPACK}") from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: {_UNPACK}")
    return lines


def _read(folder: Path, named: list[str], left_out: set[tuple[str, str]]) -> Reading:
    reading = Reading()
    counts = reading.counts
    for name in track(named, "reading annotations"):
        path = folder / "Annotations" / f"{name}.xml"
        image, boxes, without = read_annotation(path, folder / f"flickr30k-images/{name}.jpg", name)
        counts[Counted.BOXES] += sum(map(len, boxes.values()))
        last = image.width - 1, image.height - 1
        around: dict[str, Box] = {}
        for chain, own in boxes.items():
            whole = [box for raw in own if (box := reading.inside(raw, image, last, str(path)))]
            if len(whole) == len(own):
                lefts, tops, rights, bottoms = zip(*whole, strict=True)
                around[chain] = min(lefts), min(tops), max(rights), max(bottoms)
            else:
                without.add(chain)
        phrases = []
        text_path = folder / "Sentences" / f"{name}.txt"
        for number, line in enumerate(_lines(text_path), 1):
            counts[Counted.CAPTIONS] += 1
            mentions = _PHRASE.findall(line)
            for _ in range(line.count("[/EN#") - len(mentions)):
                reading.note(Counted.ODD_PHRASES, f"caption {number} of {text_path}", name)
                counts[Counted.BOXLESS] += 1
            if (name, str(number)) in left_out:
                counts[Counted.UNRELATED] += 1
                continue
            for chain, types, words in mentions:
                if not words.strip():
                    counts[Counted.WORDLESS] += 1
                elif chain in around:
                    text = " ".join(words.split())
                    phrases.append(Phrase(text, around[chain], tuple(types.split("/")[1:])))
                else:
                    counts[Counted.BOXLESS] += 1
                    if chain != NOT_VISIBLE and chain not in without:
                        reading.note(Counted.ODD_PHRASES, f"chain {chain} of {path}")
        reading.images.append(image)
        reading.phrases.append(phrases)
    return reading


def read_annotation(
    path: Path, image: Path, name: str
) -> tuple[Image, dict[str, list[Box]], set[str]]:
    """Return the image, the boxes of each chain, counted from 0, and the chains without one.

    ValueError, one line, for a file that is missing or malformed.
    """
    boxes: dict[str, list[Box]] = {}
    without: set[str] = set()
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
        if width < 1 or height < 1:
            raise ValueError(f"its size is {width}x{height}")
        for thing in root.iter("object"):
            chains = [(element.text or "").strip() for element in thing.findall("name")]
            box = thing.find("bndbox")
            if not all(chains) or not chains:
                raise ValueError("an object has no name")
            if box is None:
                without.update(chains)
                continue
            edges = ("xmin", "ymin", "xmax", "ymax")
            left, top, right, bottom = (_number(box, edge) - 1 for edge in edges)
            for chain in chains:
                boxes.setdefault(chain, []).append((left, top, right, bottom))
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        # The last is of an encoding that is unknown.
        raise ValueError(f"{path} is no annotation ({reason(error)}): {_UNPACK}") from None
    return Image(name, image, width, height), boxes, without


def _number(element: ElementTree.Element, name: str) -> int:
    text = (element.findtext(name) or "").strip()
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise ValueError(f"{name} is {text[:40]!r}")
    return int(text)
