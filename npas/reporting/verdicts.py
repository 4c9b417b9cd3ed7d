"""A table's appendix: whether sharing wins, ties or loses against networks of equal size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from npas.reporting.tables import Cell, grid_line
from npas.utils.printing import LOSSES

ERRORS = 2  # standard errors above which a difference counts


def verdicts(pairs: Sequence[tuple[str, str]], metric: str) -> Callable[..., list[str]]:
    """Return a table's appendix that compares pairs of rows, given by their labels."""

    def lines(cells: Sequence[Cell]) -> list[str]:
        found = {cell.row.label: [*measured(cell, metric).values()] for cell in cells}
        rows = []
        for shared, other in pairs:
            ours, theirs = found[shared], found[other]
            if len(ours) > 1 and len(theirs) > 1:
                rows.append(grid_line([shared, other, *_compare(ours, theirs, metric)]))
        if not rows:
            return []
        heads = ["shared", "beside", "shared", "beside", "difference", "standard error", "sharing"]
        return [
            "## What a budget buys",
            "",
            f"Means, and whether they differ by more than {ERRORS} standard errors of their"
            " difference.",
            "",
            grid_line(heads),
            grid_line(["---", "---", *["---:"] * 4, "---"]),
            *rows,
            "",
        ]

    return lines


def measured(cell: Cell, metric: str) -> dict[int, float]:
    """Return a metric of the last epoch of finished runs, by seed."""
    found = {
        seed: run.metrics.last.get(metric)
        for seed, run in cell.having("done").items()
        if run.metrics
    }
    return {seed: value for seed, value in found.items() if value is not None}


def _compare(ours: list[float], theirs: list[float], metric: str) -> list[str]:
    digits = 3 if metric in LOSSES else 2
    means = statistics.fmean(ours), statistics.fmean(theirs)
    apart = means[0] - means[1]
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (ours, theirs)))
    gain = -apart if metric in LOSSES else apart
    verdict = "ties" if abs(gain) <= ERRORS * error else "wins" if gain > 0 else "loses"
    return [
        *(f"{mean:.{digits}f}" for mean in means),
        f"{apart:+.{digits}f}",
        f"{error:.{digits}f}",
        verdict,
    ]
