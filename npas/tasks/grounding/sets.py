"""Find a data set of phrases and boxes by its name, and report what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from npas.tasks.common import checksums
from npas.tasks.grounding import flickr, referit
from npas.tasks.grounding.batch import Part
from npas.tasks.grounding.phrases import Reading, spread

READERS = {"flickr30k": flickr, "referit": referit}
TRIED = 1000  # images of each part, evenly spread, whose features are read


def folder(name: str, root: Path) -> Path:
    """Return the folder of a set, "flickr30k" or "referit", under `data.root`."""
    return root / READERS[name].FOLDER


def features_path(name: str, root: Path, split: str) -> Path:
    """Return where a split's region features lie: HDF5, by the ids of images."""
    return folder(name, root) / f"{split}_features.h5"


def read(name: str, root: Path) -> dict[str, Reading]:
    """Read all splits of a set. ValueError, one line, if it is not there or malformed."""
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
    """Count the images beside the published, and record the files that ReferIt is read from.

    No checksums of either set are known. ValueError as `Comparison.add`.
    """
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
    """Return a description of each split and of the words, a line each.

    `published` is the set to compare with, "flickr30k" or "referit"; None: it is synthetic.
    ValueError for features that cannot be read.
    """
    found = {}
    known = flickr.PUBLISHED if published == "flickr30k" else {}
    for split, reading in readings.items():
        part = parts[split]
        regions, rows_I = part.regions, part.regions.rows_I[part.there]
        tried = [part.there[i] for i in spread(len(part.there), TRIED)]
        for index in tried:
            regions.read(index, int(regions.rows_I[index]))
        there = sum(image.path.is_file() for image in reading.images)
        counts = "".join(f", {count:,} {what}" for what, count in sorted(reading.counts.items()))
        found[split] = (
            f"{_beside(len(reading.images), known.get(split))}, {there:,} of them as files,"
            f" {len(part.flat):,} phrases with a box{counts}, {rows_I.sum():,} regions,"
            f" {rows_I.min():,} to {rows_I.max():,} an image, of {regions.width:,} numbers;"
            f" {len(tried):,} of {len(rows_I):,} images read, {len(regions.missing):,} have none"
        )
    images = sum(len(reading.images) for reading in readings.values())
    in_all = referit.PUBLISHED_IMAGES if published == "referit" else sum(known.values())
    found["all"] = _beside(images, in_all or None)
    words = next(iter(parts.values())).words
    found["words"] = (
        f"{len(words.lengths_U):,} different phrases of up to {int(words.lengths_U.max())} words,"
        f" {len(words.table_NV) - 1:,} vectors of {words.table_NV.shape[1]:,} numbers, none of"
        f" {words.unknown:,} other words"
    )
    return found


def _beside(count: int, published: int | None) -> str:
    """Return a count of images, and whether it is the published one."""
    if published is None:
        return f"{count:,} images"
    same = "as published" if count == published else f"{published:,} were published"
    return f"{count:,} images ({same})"
