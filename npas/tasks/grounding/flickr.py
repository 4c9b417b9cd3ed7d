"""Read Flickr30K Entities (Plummer et al. 2017): captions, their phrases and the phrases' boxes.

    flickr30k_entities/train.txt                     image ids, one per line; val.txt, test.txt
    flickr30k_entities/Sentences/1000092795.txt      five captions
    flickr30k_entities/Annotations/1000092795.xml    boxes of chains, pixels counted from 1
    flickr30k_entities/UNRELATED_CAPTIONS            "id number": captions of another image
    flickr30k_entities/flickr30k-images/1000092795.jpg

A phrase is marked in its caption as `[/EN#chain/type/type words]`. Phrases of one chain refer to
the same things; chain 0 is for things that are not visible. A chain has boxes, or is annotated as
having none (the whole scene, or not in the image). A phrase's box is the union of its chain's.

Captions of another image are skipped in every split; the published list has 21, all in training.
A chain with a box that is empty or outside the image is read as having none, and malformed phrases
are skipped; both are counted, with a warning.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from npas.tasks.common.files import reason
from npas.tasks.grounding.phrases import SPLITS, Box, Counted, Image, Phrase, Reading, log, warn
from npas.utils.progress import track

FOLDER = "flickr30k_entities"
PUBLISHED = {"train": 29_783, "val": 1_000, "test": 1_000}  # images
NOT_VISIBLE = "0"  # the chain

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\[\]]+)*)\s*([^\[\]]*)\]")
_UNPACK = "unpack github.com/BryanPlummer/flickr30k_entities and its annotations.zip again"


def read(folder: Path) -> dict[str, Reading]:
    """Read all three splits; raises ValueError if files are missing or malformed."""
    named = {split: _lines(folder / f"{split}.txt") for split in SPLITS}
    seen: set[str] = set()
    for split, own in named.items():
        for name in own:
            if not re.fullmatch(r"[\w-]+", name) or name in seen:  # used in paths
                problem = "listed twice" if name in seen else "not an image id"
                raise ValueError(f"{folder / split}.txt: {name!r} is {problem}: {_UNPACK}")
            seen.add(name)
    left_out = unrelated(folder / "UNRELATED_CAPTIONS")
    found = {split: _read(folder, own, left_out) for split, own in named.items()}
    warn(FOLDER, found, _UNPACK)
    return found


def unrelated(path: Path) -> set[tuple[str, str]]:
    """Return the captions of another image, as (image id, caption number from 1).

    A missing file logs a warning, and no caption is skipped. Raises ValueError if it is malformed.
    """
    if not path.exists():
        log.warning("%s is missing: captions of another image are not skipped", path)
        return set()
    found = set()
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, number = line.strip().partition(" ")
            if not number.isdecimal():
                raise ValueError(f"{path}: {line[:80]!r} is not an id and a number: {_UNPACK}")
            found.add((name, number))
    return found


def _lines(path: Path) -> list[str]:
    """Return a UTF-8 file's non-empty lines, with U+FFFD for invalid bytes.

    Raises ValueError if there are none.
    """
    try:  # some files start with a byte order mark
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
    """Return the image, the boxes of each chain, pixels counted from 0, and chains without boxes.

    Raises ValueError if the file is missing or malformed.
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
        # LookupError: unknown encoding.
        raise ValueError(f"{path} is not an annotation ({reason(error)}): {_UNPACK}") from None
    return Image(name, image, width, height), boxes, without


def _number(element: ElementTree.Element, name: str) -> int:
    text = (element.findtext(name) or "").strip()
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise ValueError(f"{name} is {text[:40]!r}")
    return int(text)
