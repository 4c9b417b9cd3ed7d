"""Find a data set of phrases and boxes by its name: where it lies, its images, its phrases."""

from __future__ import annotations

from pathlib import Path

from npas.tasks import _grounding_flickr, _grounding_referit
from npas.tasks._grounding_phrases import Reading

READERS = {"flickr30k": _grounding_flickr, "referit": _grounding_referit}


def folder(name: str, root: Path) -> Path:
    """Return the folder of a set, "flickr30k" or "referit", under `data.root`."""
    return root / READERS[name].FOLDER


def read(name: str, root: Path) -> dict[str, Reading]:
    """Read all splits of a set. ValueError, one line, if it is not there or malformed."""
    where = folder(name, root)
    if not where.is_dir():
        raise ValueError(
            f"{name} is not under data.root={root}: put it into {where} as docs/data.md says, or"
            " set data.source=standin"
        )
    return READERS[name].read(where)


def features_path(name: str, root: Path, split: str) -> Path:
    """Return where a split's region features lie: HDF5, by the ids of images."""
    return folder(name, root) / f"{split}_features.h5"
