"""Read RefCLEF: ReferItGame's expressions (Kazemzadeh et al. 2014) as the refer toolbox packs them.

    refclef/refs(berkeley).p         a pickled list: expressions, their image and split
    refclef/instances.json           images with their sizes, and annotations with boxes
    images/saiapr_tc-12/2004.jpg     beside refclef, with the file names of instances.json

Each expression is a phrase: its raw text in lower case, without non-ASCII characters. A box is
given as left, top, width and height, and read as (left, top, left + width, top + height), as CITE
does. Expressions whose box is empty or outside its image are skipped, with a warning.
"""

import json
from pathlib import Path
from typing import Any

from npas.tasks.common.unpickle import unpickle
from npas.tasks.grounding.phrases import SPLITS, Box, Image, Phrase, Reading
from npas.utils.files import reading

FOLDER = "refclef"
PUBLISHED_IMAGES = 19_997  # of all splits
REFS, INSTANCES = "refs(berkeley).p", "instances.json"


def read(folder: Path) -> dict[str, Reading]:
    """Read all three splits; raises ValueError if files are missing or malformed."""
    with reading(folder, "unpack refclef.zip of github.com/lichengunc/refer again"):
        return _read(folder)


def _read(folder: Path) -> dict[str, Reading]:
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
