"""Report what a grounding set's files hold, compared with what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from npas.tasks.grounding import flickr, referit
from npas.tasks.grounding.batch import Part
from npas.tasks.grounding.phrases import (
    BOXES,
    BOXLESS,
    CAPTIONS,
    CLIPPED,
    ODD_BOXES,
    ODD_PHRASES,
    UNANNOTATED,
    UNRELATED,
    WORDLESS,
    Reading,
    spread,
)

TRIED = 1000  # images of each part, evenly spread, whose features are read
LEFT_OUT = (BOXLESS, ODD_BOXES, ODD_PHRASES, UNANNOTATED, WORDLESS, UNRELATED)


def report(
    readings: Mapping[str, Reading], parts: Mapping[str, Part], published: str | None
) -> dict[str, str]:
    """Return a description of each split, all of them, features, words and images, a line each.

    `published` is the set to compare with, "flickr30k" or "referit"; None: it is synthetic.
    """
    found = {}
    each = flickr.PUBLISHED if published == "flickr30k" else {}
    for split, reading in readings.items():
        images = _beside(len(reading.images), each.get(split), "images")
        found[split] = f"{images}, {_phrases(reading, len(parts[split].flat))}"
    found["all"] = _all(readings, published)
    for split, part in parts.items():
        found[f"{split} features"] = _features(part)
    found["words"] = _words(parts)
    found["images"] = _images(readings)
    return found


def _phrases(reading: Reading, with_box: int) -> str:
    counts = reading.counts
    left_out = [f"{counts[what]:,} {what}" for what in LEFT_OUT if counts[what]]
    line = f"{with_box:,} phrases with a box"
    if left_out:
        line += f" (left out: {', '.join(left_out)})"
    line += f", {counts[BOXES]:,} boxes"
    return f"{line}, {counts[CLIPPED]:,} of them clipped" if counts[CLIPPED] else line


def _all(readings: Mapping[str, Reading], published: str | None) -> str:
    images = sum(len(reading.images) for reading in readings.values())
    captions = sum(reading.counts[CAPTIONS] for reading in readings.values())
    if published == "referit":
        return _beside(images, referit.PUBLISHED_IMAGES, "images")
    if published is None:
        line = f"{images:,} images, synthetic"
        return f"{line}; {captions:,} captions" if captions else line
    parts = (
        _beside(images, sum(flickr.PUBLISHED.values()), "images"),
        _beside(captions, flickr.PUBLISHED_CAPTIONS, "captions"),
    )
    return ", ".join(parts)


def _beside(count: int, published: int | None, what: str) -> str:
    """Return a count, and whether it is the published one."""
    if published is None:
        return f"{count:,} {what}"
    same = "as published" if count == published else f"{published:,} were published"
    return f"{count:,} {what} ({same})"


def _features(part: Part) -> str:
    """Return a line on a file of features; ValueError if one tried cannot be read."""
    regions, tried = part.regions, [part.there[i] for i in spread(len(part.there), TRIED)]
    for index in tried:
        regions.read(index, int(regions.rows_I[index]))
    rows_I = regions.rows_I[part.there]
    least, most = int(rows_I.min()), int(rows_I.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    line = (
        f"{rows_I.sum():,} regions, {each} an image, of {regions.width:,} numbers, in"
        f" {regions.path.stat().st_size:,} bytes; {len(tried):,} of {len(rows_I):,} images read"
    )
    missing = regions.missing
    return f"{line}; {len(missing):,} more have none (first: {missing[0]})" if missing else line


def _words(parts: Mapping[str, Part]) -> str:
    words = next(iter(parts.values())).words
    texts = words.lengths_U
    unknown = int((words.rows_UT[:, 0] == 0).sum())
    return (
        f"{len(texts):,} different phrases of up to {int(texts.max())} words,"
        f" {len(words.table_NV) - 1:,} vectors of {words.table_NV.shape[1]:,} numbers, none of"
        f" {words.unknown:,} other words;"
        f" {unknown:,} phrases without a known word"
    )


def _images(readings: Mapping[str, Reading]) -> str:
    """Return how many image files are there; only looking and extracting features need them."""
    counts: Counter[bool] = Counter()
    first = None
    for reading in readings.values():
        for image in reading.images:
            is_there = image.path.is_file()
            counts[is_there] += 1
            if not is_there and first is None:
                first = image.path
    line = f"{counts[True]:,} of {counts.total():,} image files are there"
    if first is None:
        return line
    return f"{line} (missing: {first}), which only show= and extract_regions.py need"
