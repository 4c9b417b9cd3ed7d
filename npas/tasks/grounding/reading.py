"""Read the phrases, boxes and images of Flickr30K Entities and ReferIt (docs/data.md).

A box is (left, top, right, bottom) in pixels counted from 0, inclusive.

Flickr30K Entities (Plummer et al. 2017): a phrase is marked in its caption, `[/EN#chain/type/type
words]`. Phrases of one chain refer to the same things; chain 0 is for things that are not visible.
A phrase's box is the union of its chain's. Captions of another image are skipped. A chain with a
box that is empty or outside the image is read as having none.

RefCLEF, ReferItGame's expressions (Kazemzadeh et al. 2014) as the refer toolbox packs them: each is
a phrase, in lower case, without non-ASCII characters. A box is given as left, top, width and
height, and read as (left, top, left + width, top + height), as CITE does.

A warning counts what is clipped or skipped. Dimensions: I images of a split, N phrases, C types.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from npas.tasks.common.checksums import Comparison, sha256
from npas.tasks.common.unpickle import unpickle
from npas.utils.files import reading
from npas.utils.progress import track

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
FOLDERS = {"flickr30k": "flickr30k_entities", "referit": "refclef"}
PUBLISHED = {"train": 29_783, "val": 1_000, "test": 1_000, "all": 19_997}  # images
REFS, INSTANCES = "refs(berkeley).p", "instances.json"
NOT_VISIBLE, EDGES = "0", ("xmin", "ymin", "xmax", "ymax")  # the chain; of a box
# Keys of `Reading.counts`.
CLIPPED, ODD_BOXES, ODD_PHRASES = (
    "boxes clipped to their image", "boxes skipped, empty or outside", "malformed phrases skipped",
)  # fmt: skip

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\[\]]+)*)\s*([^\[\]]*)\]")
_UNPACK = "unpack github.com/BryanPlummer/flickr30k_entities and its annotations.zip again"

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
    """The phrases of all images that have any, as arrays, which forked workers share."""

    images: list[Image]
    first_J: np.ndarray  # int64, J = I + 1: image i has phrases first_J[i] to first_J[i+1] - 1
    texts: list[str]  # without duplicates
    text_N: np.ndarray  # int64: index of each phrase's text
    boxes_N4: np.ndarray  # float32
    types: list[str]  # sorted
    is_type_NC: np.ndarray  # bool: a phrase may be of several types

    @classmethod
    def of(cls, reading: Reading) -> Flat:
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


def folder(name: str, root: Path) -> Path:
    """Return the folder of a dataset, "flickr30k" or "referit", under `data.root`."""
    return root / FOLDERS[name]


def features_path(name: str, root: Path, split: str) -> Path:
    """Return the path of a split's region features."""
    return folder(name, root) / f"{split}_features.h5"


def read(name: str, root: Path) -> dict[str, Reading]:
    """Read all splits of a dataset; raises ValueError if it is missing or malformed."""
    where = folder(name, root)
    if not where.is_dir():
        raise ValueError(f"{name} is not at {where}: put it there (docs/data.md)")
    found = {"flickr30k": read_flickr, "referit": read_referit}[name](where)
    counts = sum((own.counts for own in found.values()), Counter[str]())
    if counts:
        lines = [f"{counts[what]:,} {what}" for what in sorted(counts)]
        log.warning("%s: %s", name, ", ".join(lines))
    return found


def compare(name: str, root: Path, found: Mapping[str, Reading], compared: Comparison) -> None:
    """Compare numbers of images with the published; no checksums of either dataset are known."""
    where, counts = folder(name, root), {split: len(own.images) for split, own in found.items()}
    if name == "referit":
        for path in (where / REFS, where / INSTANCES):
            compared.add(path.name, sha256(path), None, path=path, remedy="")
        counts = {"all": sum(counts.values())}
    for split, count in counts.items():
        compared.add_images(split, count, PUBLISHED[split], where)


# --- Flickr30K Entities


def read_flickr(folder: Path) -> dict[str, Reading]:
    """Read the three splits of Flickr30K Entities."""
    unrelated = {
        tuple(line.split())
        for line in _lines(folder / "UNRELATED_CAPTIONS")
        if not line.startswith("#")
    }
    return {
        split: _read_split(folder, _lines(folder / f"{split}.txt"), unrelated) for split in SPLITS
    }


def _lines(path: Path) -> list[str]:
    """Return a UTF-8 file's non-empty lines, with U+FFFD for invalid bytes."""
    with reading(path, _UNPACK):  # some files start with a byte order mark
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _read_split(folder: Path, named: list[str], unrelated: set[tuple[str, ...]]) -> Reading:
    found = Reading()
    for name in track(named, "reading annotations"):
        image = folder / f"flickr30k-images/{name}.jpg"
        path = folder / "Annotations" / f"{name}.xml"
        with reading(path, _UNPACK):
            root = ElementTree.parse(path).getroot()
            width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
            around, without = _boxes(found, root, (width - 1, height - 1))
        found.images.append(Image(name, image, width, height))
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
                elif text and chain not in without:
                    found.counts[ODD_PHRASES] += 1
    return found


def _boxes(
    found: Reading, root: ElementTree.Element, last: tuple[int, int]
) -> tuple[dict[str, Box], set[str]]:
    """Return the box around all objects of each chain, in pixels from 0; and chains without one."""
    around: dict[str, Box] = {}
    without, odd = {NOT_VISIBLE}, set[str]()
    for thing in root.iter("object"):
        chains = [(element.text or "").strip() for element in thing.findall("name")]
        if (box := thing.find("bndbox")) is None:
            without.update(chains)
            continue
        left, top, right, bottom = (float(box.findtext(edge, "")) - 1 for edge in EDGES)
        if (own := found.inside((left, top, right, bottom), last)) is None:
            odd.update(chains)
            continue
        for chain in chains:
            both = zip(own, around.get(chain, own), strict=True)
            (left, _), (top, _), (_, right), (_, bottom) = map(sorted, both)
            around[chain] = left, top, right, bottom
    return {chain: box for chain, box in around.items() if chain not in odd}, without | odd


# --- RefCLEF


@reading("refclef", "unpack refclef.zip of github.com/lichengunc/refer again")
def read_referit(folder: Path) -> dict[str, Reading]:
    """Read the three splits of RefCLEF."""
    pixels = folder.parent / "images" / "saiapr_tc-12"
    instances = json.loads((folder / INSTANCES).read_bytes())
    sizes = {entry["id"]: entry for entry in instances["images"]}
    boxes: dict[Any, Box] = {}
    for entry in instances["annotations"]:
        left, top, width, height = map(float, entry["bbox"])
        boxes[entry["id"]] = left, top, left + width, top + height
    found = {split: Reading() for split in SPLITS}
    seen: dict[tuple[str, Any], list[Phrase]] = {}  # the phrases of an image in a split
    for ref in unpickle((folder / REFS).read_bytes()):
        split, image_id = ref["split"], ref["image_id"]
        entry, own = sizes[image_id], found[split]
        width, height = int(entry["width"]), int(entry["height"])
        if (split, image_id) not in seen:
            seen[split, image_id] = []
            own.images.append(Image(str(image_id), pixels / entry["file_name"], width, height))
            own.phrases.append(seen[split, image_id])
        # The largest x and y are left + width and top + height of a box at the edge.
        box = own.inside(boxes[ref["ann_id"]], (width, height))
        for sentence in ref["sentences"]:
            raw = sentence["raw"].encode("ascii", "ignore").decode()
            if box and (text := " ".join(raw.lower().split())):
                seen[split, image_id].append(Phrase(text, box))
    return found
