"""Read RefCLEF: ReferItGame's expressions (Kazemzadeh et al. 2014) as the refer toolbox packs them.

    refclef/refs(berkeley).p         a pickled list: expressions, their image and split
    refclef/instances.json           images with their sizes, and annotations with boxes
    images/saiapr_tc-12/2004.jpg     beside refclef, with the file names of instances.json

Each expression is a phrase: its raw text in lower case, without non-ASCII characters. A box is
given as left, top, width and height, and read as (left, top, left + width, top + height), as CITE
does. Expressions whose box is empty or outside its image are skipped, with a warning.
"""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

from npas.tasks.common.files import reason
from npas.tasks.common.unpickle import unpickle
from npas.tasks.grounding.phrases import SPLITS, Box, Counted, Image, Phrase, Reading, warn

FOLDER = "refclef"
PUBLISHED_IMAGES = 19_997  # of all splits
REFS, INSTANCES = "refs(berkeley).p", "instances.json"

_FETCH = "unpack refclef.zip of github.com/lichengunc/refer again"


def read(folder: Path) -> dict[str, Reading]:
    """Read all three splits; raises ValueError if files are missing or malformed."""
    path = folder / INSTANCES
    pixels = folder.parent / "images" / "saiapr_tc-12"
    try:
        instances = json.loads(path.read_bytes())
        images = {
            entry["id"]: Image(
                str(entry["id"]),
                pixels / entry["file_name"],
                *(operator.index(entry[side]) for side in ("width", "height")),
            )
            for entry in instances["images"]
        }
        annotated = {
            entry["id"]: (entry["image_id"], _box(entry["bbox"]))
            for entry in instances["annotations"]
        }
        if any(min(image.width, image.height) < 1 for image in images.values()):
            raise ValueError("an image has no size")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _malformed(path, error) from None
    found = _splits(folder / REFS, path, images, annotated)
    warn(FOLDER, found, _FETCH)
    return found


def _malformed(path: Path, error: Exception) -> ValueError:
    problem = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
    return ValueError(f"{path} is not as refer writes it ({problem}): {_FETCH}")


def _splits(
    refs_path: Path,
    instances_path: Path,
    images: dict[Any, Image],
    annotated: dict[Any, tuple[Any, Box]],
) -> dict[str, Reading]:
    """Read the expressions of each split."""
    try:
        refs = []
        for ref in unpickle(refs_path.read_bytes()):
            texts = [_ascii(sentence["raw"]) for sentence in ref["sentences"]]
            refs.append((ref["split"], ref["image_id"], ref["ann_id"], texts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _malformed(refs_path, error) from None
    found = {split: Reading() for split in SPLITS}
    seen: dict[Any, tuple[str, int]] = {}  # an image's split, and its index there
    for split, image_id, ann_id, texts in refs:
        if split not in found:
            raise ValueError(f"{refs_path} has a split {split!r}, not one of berkeley's: {_FETCH}")
        if image_id not in images or annotated.get(ann_id, (None, None))[0] != image_id:
            raise ValueError(
                f"{instances_path} has no annotation {ann_id} of an image {image_id}, which"
                f" {refs_path.name} refers to: {_FETCH}"
            )
        image, reading = images[image_id], found[split]
        if image_id not in seen:
            seen[image_id] = split, len(reading.images)
            reading.images.append(image)
            reading.phrases.append([])
        other, index = seen[image_id]
        if other != split:
            raise ValueError(
                f"{refs_path} has image {image_id} in {other} and in {split}: {_FETCH}"
            )
        last = image.width, image.height  # left + width of a box at the edge
        where = f"annotation {ann_id} of {instances_path}"
        box = reading.inside(annotated[ann_id][1], image, last, where)
        reading.counts[Counted.BOXES] += 1
        for text in texts:
            if box is None or not text:
                reading.counts[Counted.WORDLESS if box else Counted.BOXLESS] += 1
            else:
                reading.phrases[index].append(Phrase(text, box))
    if not all(reading.images for reading in found.values()):
        raise ValueError(f"{refs_path} lacks one of {', '.join(SPLITS)}: {_FETCH}")
    return found


def _box(given: Any) -> Box:
    left, top, width, height = map(float, given)
    return left, top, left + width, top + height


def _ascii(text: str) -> str:
    return " ".join(text.encode("ascii", "ignore").decode().lower().split())
