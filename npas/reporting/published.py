"""Published figures, read from published.yaml beside this file, with where each was read and how.

figure("cifar", "WRN 28-10", "c10", dropout=0.3).value
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npas.models import near

FILE = Path(__file__).with_name("published.yaml")
READINGS = ("clean", "mended")


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


def figure(section: str, name: str, column: str, **match: object) -> Figure:
    """Return the one figure of `section` whose row has this name, this column and all of `match`.

    Raises ValueError where none or several rows fit.
    """
    document = load()
    sections = document["sections"]
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
    return Figure(
        name=name,
        column=column,
        value=float(row[column]),
        params=row.get("params"),
        source=document["sources"][row["source"]],
        note=row.get("note"),
        gpu_days=row.get("gpu_days"),
    )


@functools.cache
def load(path: Path = FILE) -> Mapping[str, Any]:
    """Read and check the file of published figures; a ValueError names the entry that is wrong."""
    from omegaconf import OmegaConf

    document: Any = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(document, dict) or set(document) != {"sources", "sections"}:
        raise ValueError(f"{path}: must hold 'sources' and 'sections' and nothing else")
    for section, content in document["sections"].items():
        unknown = set(content) - {"rows", "claims"}
        if unknown:
            raise ValueError(f"{path}: sections.{section} has unknown keys {sorted(unknown)}")
        for kind, check in (("rows", _check_row), ("claims", _check_claim)):
            for index, entry in enumerate(content.get(kind, ())):
                try:
                    check(entry, document["sources"])
                except ValueError as error:
                    where = f"sections.{section}.{kind}[{index}]"
                    raise ValueError(f"{path}: {where} {error}") from None
    return document


def _check_row(row: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    if not isinstance(row.get("name"), str):
        raise ValueError("needs a name")
    _check_source(row, sources)
    if row.get("read") not in READINGS:
        raise ValueError(f"needs read: {' or '.join(READINGS)}")
    if (row["read"] == "mended") != ("note" in row):
        raise ValueError("needs a note exactly where it was mended")
    for key, value in row.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and not (
            value >= 0 if key in ("params", "gflops", "gpu_days") else 0 <= value <= 100
        ):
            raise ValueError(f"has an impossible {key}: {value}")


def _check_claim(claim: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    if not isinstance(claim.get("claim"), str):
        raise ValueError("needs a claim")
    _check_source(claim, sources)


def _check_source(entry: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    if entry.get("source") not in sources:
        raise ValueError(f"needs a source: one of {', '.join(sources)}")
