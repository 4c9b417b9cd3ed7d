"""Find a data set of phrases and boxes by its name, and report what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from npas.tasks.common import checksums
from npas.tasks.grounding import flickr, referit
from npas.tasks.grounding.batch import Part
from npas.tasks.grounding.phrases import (
    BOXES,
    BOXLESS,
    CAPTIONS,
    CLIPPED,
    ODD_BOXES,
    ODD_PHRASES,
    UNRELATED,
    WORDLESS,
    Reading,
    spread,
)

READERS = {"flickr30k": flickr, "referit": referit}
TRIED = 1000  # images of each part, evenly spread, whose features are read
NOTED = (BOXLESS, ODD_BOXES, ODD_PHRASES, WORDLESS, UNRELATED, CLIPPED)


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
    """Return a description of each split, all of them, features and words, a line each.

    `published` is the set to compare with, "flickr30k" or "referit"; None: it is synthetic.
    ValueError for features that cannot be read.
    """
    found = {}
    each = flickr.PUBLISHED if published == "flickr30k" else {}
    for split, reading in readings.items():
        counts, images = reading.counts, _beside(len(reading.images), each.get(split), "images")
        noted = "".join(f", {counts[what]:,} {what}" for what in NOTED if counts[what])
        there = sum(image.path.is_file() for image in reading.images)
        found[split] = (
            f"{images}, {there:,} of them as files, {len(parts[split].flat):,} phrases with a box,"
            f" {counts[BOXES]:,} boxes{noted}"
        )
    count = sum(len(reading.images) for reading in readings.values())
    captions = sum(reading.counts[CAPTIONS] for reading in readings.values())
    if published == "flickr30k":
        in_all = _beside(captions, flickr.PUBLISHED_CAPTIONS, "captions")
        found["all"] = f"{_beside(count, sum(each.values()), 'images')}, {in_all}"
    else:
        known = referit.PUBLISHED_IMAGES if published else None
        found["all"] = _beside(count, known, "images" if published else "images, synthetic")
    for split, part in parts.items():
        regions, rows_I = part.regions, part.regions.rows_I[part.there]
        tried = [part.there[i] for i in spread(len(part.there), TRIED)]
        for index in tried:
            regions.read(index, int(regions.rows_I[index]))
        found[f"{split} features"] = (
            f"{rows_I.sum():,} regions, {rows_I.min():,} to {rows_I.max():,} an image, of"
            f" {regions.width:,} numbers; {len(tried):,} of {len(rows_I):,} images read,"
            f" {len(regions.missing):,} more have none"
        )
    words = next(iter(parts.values())).words
    found["words"] = (
        f"{len(words.lengths_U):,} different phrases of up to {int(words.lengths_U.max())} words,"
        f" {len(words.table_NV) - 1:,} vectors of {words.table_NV.shape[1]:,} numbers, none of"
        f" {words.unknown:,} other words"
    )
    return found


def _beside(count: int, published: int | None, what: str) -> str:
    """Return a count, and whether it is the published one."""
    if published is None:
        return f"{count:,} {what}"
    same = "as published" if count == published else f"{published:,} were published"
    return f"{count:,} {what} ({same})"
