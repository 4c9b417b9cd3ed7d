"""Read RefCLEF: ReferItGame's expressions (Kazemzadeh et al. 2014) as the refer toolbox packs them.

    refclef/refs(berkeley).p         a pickled list: expressions, their image and split
    refclef/instances.json           images with their sizes, and annotations with boxes
    images/saiapr_tc-12/2004.jpg     beside refclef, under the names that instances.json has

Each expression is a phrase: its raw text in small letters, without what is no ASCII. A box is given
as left, top, width and height, and taken as (left, top, left + width, top + height), as CITE does.
Expressions whose box is empty or outside its image are left out, counted and warned of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from npas.tasks.common.files import reason
from npas.tasks.common.unpickle import unpickle
from npas.tasks.grounding.phrases import (
    BOXES,
    BOXLESS,
    SPLITS,
    WORDLESS,
    Box,
    Image,
    Phrase,
    Reading,
    inside,
    warn,
)

FOLDER = "refclef"
PUBLISHED_IMAGES = 19_997  # published, of all splits together
REFS, INSTANCES = "refs(berkeley).p", "instances.json"

_FETCH = "unpack refclef.zip of github.com/lichengunc/refer again"


def read(folder: Path) -> dict[str, Reading]:
    """Read all three splits. ValueError, one line, for what is missing or malformed."""
    path = folder / INSTANCES
    pixels = folder.parent / "images" / "saiapr_tc-12"
    raw = _bytes(path)
    try:
        instances = json.loads(raw)
        images = {
            entry["id"]: Image(
                str(entry["id"]), pixels / entry["file_name"], entry["width"], entry["height"]
            )
            for entry in instances["images"]
        }
        annotated = {
            entry["id"]: (entry["image_id"], _box(entry["bbox"]))
            for entry in instances["annotations"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not as refer writes it ({_reason(error)}): {_FETCH}") from None
    for image in images.values():
        sides = image.width, image.height
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"{path}: image {image.id} has no size of two whole numbers; {_FETCH}")
    found = _splits(folder / REFS, path, images, annotated)
    warn(FOLDER, found, _FETCH)
    return found


def _splits(
    refs_path: Path,
    instances_path: Path,
    images: dict[Any, Image],
    annotated: dict[Any, tuple[Any, Box]],
) -> dict[str, Reading]:
    """Deal the expressions out to their splits, image by image as they come."""
    raw = _bytes(refs_path)
    try:
        refs = [
            (ref["split"], ref["image_id"], ref["ann_id"], [s["raw"] for s in ref["sentences"]])
            for ref in unpickle(raw)
        ]
        phrases = [[_ascii(text) for text in texts] for *_, texts in refs]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = _reason(error)
        raise ValueError(f"{refs_path} is not as refer writes it ({said}): {_FETCH}") from None
    found = {split: Reading() for split in SPLITS}
    place: dict[Any, tuple[str, int]] = {}
    for (split, image_id, ann_id, _), texts in zip(refs, phrases, strict=True):
        if split not in found:
            raise ValueError(f"{refs_path} has a split {split!r}, not one of berkeley's; {_FETCH}")
        if image_id not in images or annotated.get(ann_id, (None, None))[0] != image_id:
            raise ValueError(
                f"{instances_path} has no annotation {ann_id} of an image {image_id}, which"
                f" {refs_path.name} refers to: {_FETCH}"
            )
        image, reading = images[image_id], found[split]
        if image_id not in place:
            place[image_id] = split, len(reading.images)
            reading.images.append(image)
            reading.phrases.append([])
        if place[image_id][0] != split:
            raise ValueError(
                f"{refs_path} names image {image_id} twice, in {place[image_id][0]} and in {split}:"
                f" {_FETCH}"
            )
        last = image.width, image.height  # as far as left + width of a box at the edge comes
        where = f"annotation {ann_id} of {instances_path}"
        box = inside(annotated[ann_id][1], image, last, reading, where)
        reading.counts[BOXES] += 1
        if box is None:
            reading.counts[BOXLESS] += len(texts)
            continue
        for text in texts:
            if text:
                reading.phrases[place[image_id][1]].append(Phrase(text, box))
            else:
                reading.counts[WORDLESS] += 1
    for split, reading in found.items():
        if not reading.images:
            raise ValueError(f"{refs_path} has nothing of the split {split}: {_FETCH}")
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: {_FETCH}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason(error)}): {_FETCH}") from None


def _box(given: Any) -> Box:
    left, top, width, height = map(float, given)
    return left, top, left + width, top + height


def _ascii(text: str) -> str:
    return " ".join(text.encode("ascii", "ignore").decode().lower().split())


def _reason(error: Exception) -> str:
    """Return what an exception says; of a missing key, which."""
    return f"something has no {error}" if isinstance(error, KeyError) else reason(error)
