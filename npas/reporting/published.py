"""Published figures and their sources, read from published.yaml."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Figure:
    """One published number."""

    name: str
    column: str
    value: float
    params: float | None  # millions
    source: str  # a description of the document
    note: str | None  # how a garbled figure was corrected
    gpu_days: float | None = None  # of the training, if given in the document
    mflops: float | None = None  # millions of multiply-adds per input, if given


def figure(section: str, name: str, column: str, **match: object) -> Figure:
    """Return the figure of the only row with this name and column and all of `match`."""
    document = load()
    wanted = {"name": name, **match}
    rows = [
        row
        for row in document["sections"][section]["rows"]
        if column in row and all(row.get(key) == value for key, value in wanted.items())
    ]
    assert len(rows) == 1, f"{len(rows)} rows of {section} have {wanted}"
    (row,) = rows
    known = {key: row.get(key) for key in ("params", "note", "gpu_days", "mflops")}
    return Figure(
        name, column, float(row[column]), source=document["sources"][row["source"]], **known
    )


@functools.cache
def load() -> Mapping[str, Any]:
    """Read the file of published figures; tests/reporting/test_published.py checks its format."""
    from omegaconf import OmegaConf

    document: Any = OmegaConf.to_container(OmegaConf.load(FILE))
    return dict(document)
