"""Read a dataset of phrases and boxes by name, and describe its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from npas.tasks.common import checksums
from npas.tasks.grounding import flickr, referit
from npas.tasks.grounding.batch import Part
from npas.tasks.grounding.phrases import Reading, spread

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
        raise ValueError(
            f"{name} is not under data.root={root}: put it into {where} as docs/data.md says, or"
            " set data.source=synthetic"
        )
    return READERS[name].read(where)


def compare(
    name: str, root: Path, readings: Mapping[str, Reading], compared: checksums.Comparison
) -> None:
    """Compare numbers of images with the published; no checksums of either dataset are known."""
    where = folder(name, root)
    if name == "flickr30k":
        for split, reading in readings.items():
            published = flickr.PUBLISHED[split]
            compared.add_images(split, len(reading.images), published, where / f"{split}.txt")
        return
    for file in (referit.REFS, referit.INSTANCES):
        path = where / file
        compared.add(file, checksums.sha256(path), None, path=path, remedy="")
    count = sum(len(reading.images) for reading in readings.values())
    compared.add_images("all", count, referit.PUBLISHED_IMAGES, where)


def report(
    readings: Mapping[str, Reading], parts: Mapping[str, Part], published: str | None
) -> dict[str, str]:
    """Describe each split and the words, a line each.

    `published` is the dataset to compare with, "flickr30k" or "referit"; None for synthetic data.
    Raises ValueError for features that cannot be read.
    """
    found = {}
    known = flickr.PUBLISHED if published == "flickr30k" else {}
    for split, reading in readings.items():
        part = parts[split]
        regions, rows_I = part.regions, part.regions.rows_I[part.there]
        tried = [part.there[i] for i in spread(len(part.there), TRIED)]
        for index in tried:
            regions.read(index, int(regions.rows_I[index]))
        existing = sum(image.path.is_file() for image in reading.images)
        counts = "".join(f", {count:,} {what}" for what, count in sorted(reading.counts.items()))
        found[split] = (
            f"{_beside(len(reading.images), known.get(split))}, {existing:,} of them as files,"
            f" {len(part.flat):,} phrases with a box{counts}, {rows_I.sum():,} regions,"
            f" {rows_I.min():,} to {rows_I.max():,} per image, of {regions.width:,} numbers;"
            f" {len(tried):,} of {len(rows_I):,} images read, {len(regions.missing):,} have none"
        )
    images = sum(len(reading.images) for reading in readings.values())
    in_all = referit.PUBLISHED_IMAGES if published == "referit" else sum(known.values())
    found["all"] = _beside(images, in_all or None)
    words = next(iter(parts.values())).words
    found["words"] = (
        f"{len(words.lengths_U):,} different phrases of up to {int(words.lengths_U.max())} words,"
        f" {len(words.table_NV) - 1:,} vectors of {words.table_NV.shape[1]:,} numbers;"
        f" {words.unknown:,} words without a vector"
    )
    return found


def _beside(count: int, published: int | None) -> str:
    """Format a number of images, and whether it is the published one."""
    if published is None:
        return f"{count:,} images"
    same = "as published" if count == published else f"{published:,} were published"
    return f"{count:,} images ({same})"
