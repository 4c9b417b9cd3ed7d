"""Read a dataset of phrases and boxes by name, and describe its files."""

from collections.abc import Mapping
from pathlib import Path

from npas.tasks.base import spread
from npas.tasks.common import checksums
from npas.tasks.grounding import flickr, referit
from npas.tasks.grounding.batch import Part
from npas.tasks.grounding.phrases import Reading, warn

READERS = {"flickr30k": flickr, "referit": referit}
TRIED = 1000  # images of each part, evenly spread, whose features `report` reads


def folder(name: str, root: Path) -> Path:
    """Return the folder of a dataset, "flickr30k" or "referit", under `data.root`."""
    return root / READERS[name].FOLDER


def features_path(name: str, root: Path, split: str) -> Path:
    """Return the path of a split's region features."""
    return folder(name, root) / f"{split}_features.h5"


def read(name: str, root: Path) -> dict[str, Reading]:
    """Read all splits of a dataset; raises ValueError if it is missing or malformed."""
    where = folder(name, root)
    if not where.is_dir():
        raise ValueError(f"{name} is not at {where}: put it there (docs/data.md)")
    found = READERS[name].read(where)
    warn(name, found)
    return found


def compare(
    name: str, root: Path, readings: Mapping[str, Reading], compared: checksums.Comparison
) -> None:
    """Compare numbers of images with the published; no checksums of either dataset are known."""
    where = folder(name, root)
    counts = {split: len(reading.images) for split, reading in readings.items()}
    if name == "flickr30k":
        for split, count in counts.items():
            compared.add_images(split, count, flickr.PUBLISHED[split], where / f"{split}.txt")
        return
    for path in (where / referit.REFS, where / referit.INSTANCES):
        compared.add(path.name, checksums.sha256(path), None, path=path, remedy="")
    compared.add_images("all", sum(counts.values()), referit.PUBLISHED_IMAGES, where)


def report(readings: Mapping[str, Reading], parts: Mapping[str, Part]) -> dict[str, str]:
    """Describe each split and the words, a line each.

    Raises ValueError for features that cannot be read.
    """
    found = {}
    for split, reading in readings.items():
        part = parts[split]
        regions, rows_I = part.regions, part.regions.rows_I[part.there]
        tried = [part.there[i] for i in spread(len(part.there), TRIED)]
        for index in tried:
            regions.read(index, int(regions.rows_I[index]))
        existing = sum(image.path.is_file() for image in reading.images)
        found[split] = (
            f"{len(reading.images):,} images, {existing:,} of them as files,"
            f" {len(part.flat):,} phrases with a box, {rows_I.sum():,} regions,"
            f" {rows_I.min():,} to {rows_I.max():,} per image, of {regions.width:,} numbers;"
            f" {len(tried):,} of {len(rows_I):,} images read, {len(regions.missing):,} have none"
        )
    words = next(iter(parts.values())).words
    found["words"] = (
        f"{len(words.lengths_U):,} different phrases of up to {int(words.lengths_U.max())} words,"
        f" {len(words.table_NV) - 1:,} vectors of {words.table_NV.shape[1]:,} numbers"
    )
    return found
