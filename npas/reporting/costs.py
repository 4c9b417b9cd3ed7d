"""Read what a training step of each row of a table takes, as scripts/step_costs.py measured it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from npas.utils.json_data import read_json


class Cost(NamedTuple):
    """The processor time of a step beside the table's first row's, and the memory it takes."""

    ratio: float
    mib: float


def step_costs(results: Path, table: str) -> Mapping[str, Cost]:
    """Return the costs by a row's label; none where they have not been measured."""
    path = results / "bench" / f"steps-{table}.json"
    if not path.exists():
        return {}
    rows = read_json(path)["rows"]
    return {label: Cost(row["ratio"][1], row["peak_mib"]) for label, row in rows.items()}
