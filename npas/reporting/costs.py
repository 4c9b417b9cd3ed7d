"""The costs of a training step of each row of a table, measured by scripts/step_costs.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from npas.utils.json_data import read_json


class Cost(NamedTuple):
    """A step's processor time relative to the table's first row, and its memory."""

    ratio: float
    mib: float


def step_costs(results: Path, table: str) -> Mapping[str, Cost]:
    """Return the costs by row label; empty if they were not measured."""
    path = results / "bench" / f"steps-{table}.json"
    if not path.exists():
        return {}
    rows = read_json(path)["rows"]
    return {label: Cost(row["ratio"][1], row["peak_mib"]) for label, row in rows.items()}
