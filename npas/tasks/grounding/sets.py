"""Find a data set of phrases and boxes by its name: where it lies, its images, its phrases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from npas.tasks.common import checksums
from npas.tasks.grounding import flickr, referit
from npas.tasks.grounding.phrases import Reading

READERS = {"flickr30k": flickr, "referit": referit}


def folder(name: str, root: Path) -> Path:
    """Return the folder of a set, "flickr30k" or "referit", under `data.root`."""
    return root / READERS[name].FOLDER


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


def features_path(name: str, root: Path, split: str) -> Path:
    """Return where a split's region features lie: HDF5, by the ids of images."""
    return folder(name, root) / f"{split}_features.h5"
