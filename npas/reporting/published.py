"""Published figures, read from published.yaml beside this file, with where each was read and how.

figure("cifar", "WRN 28-10", "c10", dropout=0.3).value
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npas.utils.checks import near

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Figure:
    """One published number."""

    name: str
    column: str
    value: float
    params: float | None  # millions
    source: str  # the document, in words
    note: str | None  # how a garbled figure was mended
    gpu_days: float | None = None  # that the training took, where the document says so
    mflops: float | None = None  # millions of multiply-adds an input, likewise


def figure(section: str, name: str, column: str, **match: object) -> Figure:
    """Return the one figure of `section` whose row has this name, this column and all of `match`.

    Raises ValueError where none or several rows fit.
    """
    sources, sections = load()["sources"], load()["sections"]
    if section not in sections:
        raise ValueError(f"no published section {section!r}; {near(section, list(sections))}")
    wanted = {"name": name, **match}
    rows = [
        row
        for row in sections[section].get("rows", ())
        if column in row and all(row.get(key) == value for key, value in wanted.items())
    ]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows of published section {section!r} have {wanted}, not 1")
    (row,) = rows
    known = {key: row.get(key) for key in ("params", "note", "gpu_days", "mflops")}
    return Figure(name, column, float(row[column]), source=sources[row["source"]], **known)


@functools.cache
def load() -> Mapping[str, Any]:
    """Read the file of published figures; tests/reporting/test_published.py holds its rules."""
    from omegaconf import OmegaConf

    document: Any = OmegaConf.to_container(OmegaConf.load(FILE))
    return dict(document)
