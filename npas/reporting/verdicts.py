"""Appendices of tables: wins, ties and losses, paired tests, and artifacts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from npas.reporting.tables import Cell, grid_line, summarize
from npas.utils.printing import LOSSES

ERRORS = 2  # standard errors above which a difference counts
PLAIN = "coefficients a layer (SSN)"  # the rows that `paired` compares with


def verdicts(pairs: Sequence[Sequence[str]], metric: str) -> Callable[..., list[str]]:
    """Return a table's appendix that compares pairs of rows, given by their labels."""

    def lines(cells: Sequence[Cell]) -> list[str]:
        found = {cell.row.label: [*measured(cell, metric).values()] for cell in cells}
        rows = []
        for shared, other in pairs:
            ours, theirs = found[shared], found[other]
            if len(ours) > 1 and len(theirs) > 1:
                rows.append(grid_line([shared, other, *_compare(ours, theirs, metric)]))
        heads = ["shared", "beside", "shared", "beside", "difference", "standard error", "sharing"]
        text = f"Means, and whether they differ by more than {ERRORS} standard errors of their"
        return _part("What a budget buys", f"{text} difference.", heads, "llrrrrl", rows)

    return lines


def _part(
    title: str, text: str, heads: Sequence[str], sides: str, rows: Sequence[str]
) -> list[str]:
    """Return a part of a page with a grid, its columns left or right; [] without rows."""
    marks = grid_line(["---:" if side == "r" else "---" for side in sides])
    return [f"## {title}", "", text, "", grid_line(heads), marks, *rows, ""] if rows else []


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


def paired(cells: Sequence[Cell]) -> list[str]:
    """Compare the loss of each scheme with SSN's at its budget, by a t test over common seeds."""
    from scipy.stats import ttest_rel

    rows = []
    for cell in cells:
        name, _, share = cell.row.label.rpartition(", ")
        if not name:
            continue
        base = next(other for other in cells if other.row.label == f"{PLAIN}, {share}")
        ours, theirs = measured(cell, "loss"), measured(base, "loss")
        seeds = sorted(ours.keys() & theirs.keys())
        if name == PLAIN or len(seeds) < 2:
            continue
        pairs = [ours[s] for s in seeds], [theirs[s] for s in seeds]
        apart = statistics.fmean(pairs[0]) - statistics.fmean(pairs[1])
        p = float(ttest_rel(*pairs).pvalue)
        rows.append(grid_line([share, name, f"{apart:+.3f}", f"{p:.3f}", str(len(seeds))]))
    text = (
        "Mean difference over seeds, paired, and the probability of one as large by chance (t test,"
        " two-sided, not corrected for how many are compared). Three seeds tell large differences"
        " alone."
    )
    heads = ["parameters", "scheme", "difference", "p", "n"]
    return _part(f"Beside {PLAIN}", text, heads, "rlrrr", rows)


def artifacts(cells: Sequence[Cell]) -> list[str]:
    """Return lines on the size of each network's int8 artifact, and its loss when read back."""
    lines = []
    for cell in cells:
        found = [run.artifact for run in cell.having("done").values() if run.artifact is not None]
        losses = [one.metrics["loss"] for one in found if one.metrics is not None]
        if losses:
            summary = summarize(losses)
            assert summary is not None
            loss = f"{summary.mean:.3f}" + ("" if summary.std is None else f" ± {summary.std:.3f}")
            lines.append(
                grid_line([cell.row.label, f"{cell.artifact_bytes():,}", loss, str(summary.n)])
            )
    text = "Weights as int8, a scale a row, compressed by zlib; the loss is of what is read back."
    return _part("Artifacts", text, ["network", "bytes", "test loss", "n"], "lrrr", lines)
