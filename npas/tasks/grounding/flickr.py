"""Read Flickr30K Entities (Plummer et al. 2017): captions, their phrases and the phrases' boxes.

The files are named in docs/data.md. A phrase is marked in its caption, `[/EN#chain/type/type
words]`. Phrases of one chain refer to the same things; chain 0 is for things that are not visible.
A phrase's box is the union of its chain's, in pixels from 1 in the files. Captions of another image
are skipped. A chain with a box that is empty or outside the image is read as having none, and
malformed phrases are skipped, with a warning.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from npas.tasks.grounding.phrases import ODD_PHRASES, SPLITS, Box, Image, Phrase, Reading
from npas.utils.files import reading
from npas.utils.progress import track

FOLDER = "flickr30k_entities"
PUBLISHED = {"train": 29_783, "val": 1_000, "test": 1_000}  # images
NOT_VISIBLE = "0"  # the chain

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\[\]]+)*)\s*([^\[\]]*)\]")
_UNPACK = "unpack github.com/BryanPlummer/flickr30k_entities and its annotations.zip again"


def read(folder: Path) -> dict[str, Reading]:
    """Read all three splits; raises ValueError if files are missing or malformed."""
    unrelated = {
        tuple(line.split())
        for line in _lines(folder / "UNRELATED_CAPTIONS")
        if not line.startswith("#")
    }
    return {split: _read(folder, _lines(folder / f"{split}.txt"), unrelated) for split in SPLITS}


def _lines(path: Path) -> list[str]:
    """Return a UTF-8 file's non-empty lines, with U+FFFD for invalid bytes."""
    with reading(path, _UNPACK):  # some files start with a byte order mark
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _read(folder: Path, named: list[str], unrelated: set[tuple[str, ...]]) -> Reading:
    found = Reading()
    for name in track(named, "reading annotations"):
        path = folder / "Annotations" / f"{name}.xml"
        image, boxes, without = read_annotation(path, folder / f"flickr30k-images/{name}.jpg", name)
        last = image.width - 1, image.height - 1
        around: dict[str, Box] = {}
        for chain, own in boxes.items():
            whole = [box for raw in own if (box := found.inside(raw, last))]
            if len(whole) == len(own):
                lefts, tops, rights, bottoms = zip(*whole, strict=True)
                around[chain] = min(lefts), min(tops), max(rights), max(bottoms)
            else:
                without.add(chain)
        found.images.append(image)
        found.phrases.append([])
        for number, line in enumerate(_lines(folder / "Sentences" / f"{name}.txt"), 1):
            mentions = _PHRASE.findall(line)
            found.counts[ODD_PHRASES] += line.count("[/EN#") - len(mentions)
            if (name, str(number)) in unrelated:
                continue
            for chain, types, words in mentions:
                text = " ".join(words.split())
                if text and chain in around:
                    phrase = Phrase(text, around[chain], tuple(types.split("/")[1:]))
                    found.phrases[-1].append(phrase)
                elif text and chain not in (NOT_VISIBLE, *without):
                    found.counts[ODD_PHRASES] += 1
    return found


def read_annotation(
    path: Path, image: Path, name: str
) -> tuple[Image, dict[str, list[Box]], set[str]]:
    """Return the image, the boxes of each chain, pixels counted from 0, and chains without boxes.

    Raises ValueError if the file is missing or malformed.
    """
    boxes: dict[str, list[Box]] = {}
    without: set[str] = set()
    with reading(path, _UNPACK):
        root = ElementTree.parse(path).getroot()
        width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        for thing in root.iter("object"):
            chains = [(element.text or "").strip() for element in thing.findall("name")]
            box = thing.find("bndbox")
            if box is None:
                without.update(chains)
                continue
            edges = ("xmin", "ymin", "xmax", "ymax")
            left, top, right, bottom = (int(box.findtext(edge, "")) - 1 for edge in edges)
            for chain in chains:
                boxes.setdefault(chain, []).append((left, top, right, bottom))
    return Image(name, image, width, height), boxes, without
