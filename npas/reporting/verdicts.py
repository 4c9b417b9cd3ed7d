"""Appendices of tables: wins, ties and losses, paired tests, and artifacts."""

import math
import statistics
from collections.abc import Callable, Sequence

from npas.reporting.markdown import grid
from npas.reporting.tables import Cell, summarize
from npas.utils.printing import LOSSES

ERRORS = 2  # standard errors above which a difference counts
PLAIN = "coefficients a layer (SSN)"  # the rows that `paired` compares with


def verdicts(pairs: Sequence[Sequence[str]], metric: str) -> Callable[..., list[str]]:
    """Return a table's appendix that compares pairs of rows, given by their labels."""

    def lines(cells: Sequence[Cell]) -> list[str]:
        found = {cell.row.label: [*cell.values(metric).values()] for cell in cells}
        rows = [
            [shared, other, *_compare(found[shared], found[other], metric)]
            for shared, other in pairs
            if min(len(found[shared]), len(found[other])) > 1
        ]
        heads = ["shared", "beside", "shared", "beside", "difference", "standard error", "sharing"]
        text = f"Means, and whether they differ by more than {ERRORS} standard errors of their"
        return _part("What a budget buys", f"{text} difference.", heads, rows, (0, 1, 6))

    return lines


def _part(
    title: str, text: str, heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]
) -> list[str]:
    """Return a part of a page with a grid; [] without rows."""
    return [f"## {title}", "", text, "", *grid(heads, rows, left), ""] if rows else []


def _compare(ours: Sequence[float], theirs: Sequence[float], metric: str) -> list[str]:
    digits = 3 if metric in LOSSES else 2
    means = statistics.fmean(ours), statistics.fmean(theirs)
    difference = means[0] - means[1]
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (ours, theirs)))
    wins = "wins" if (difference < 0) == (metric in LOSSES) else "loses"
    verdict = "ties" if abs(difference) <= ERRORS * error else wins
    figures = [f"{value:.{digits}f}" for value in (*means, error)]
    return [*figures[:2], f"{difference:+.{digits}f}", figures[2], verdict]


def paired(cells: Sequence[Cell]) -> list[str]:
    """Compare the loss of each scheme with SSN's at its budget, by a t test over common seeds."""
    from scipy.stats import ttest_rel

    found, rows = {cell.row.label: cell.values("loss") for cell in cells}, []
    for label, ours in found.items():
        name, _, share = label.rpartition(", ")
        theirs = found[f"{PLAIN}, {share}"] if name else {}
        seeds = sorted(ours.keys() & theirs.keys())
        if name not in ("", PLAIN) and len(seeds) > 1:
            pairs = [ours[s] for s in seeds], [theirs[s] for s in seeds]
            difference = statistics.fmean(pairs[0]) - statistics.fmean(pairs[1])
            p = float(ttest_rel(*pairs).pvalue)
            rows.append([share, name, f"{difference:+.3f}", f"{p:.3f}", str(len(seeds))])
    text = (
        "Mean difference over seeds, paired, and the probability of one as large by chance (t test,"
        " two-sided, not corrected for how many are compared). Three seeds tell large differences"
        " alone."
    )
    heads = ["parameters", "scheme", "difference", "p", "n"]
    return _part(f"Beside {PLAIN}", text, heads, rows, (1,))


def artifacts(cells: Sequence[Cell]) -> list[str]:
    """Return lines on the size of each network's int8 artifact, and its loss when read back."""
    rows = []
    for cell in cells:
        found = [run.artifact for run in cell.having("done").values() if run.artifact is not None]
        losses = [one.metrics["loss"] for one in found if one.metrics is not None]
        if summary := summarize(losses, "loss"):
            rows.append(
                [cell.row.label, f"{cell.artifact_bytes():,}", str(summary), str(summary.n)]
            )
    text = "Weights as int8, a scale a row, compressed by zlib; the loss is of what is read back."
    return _part("Artifacts", text, ["network", "bytes", "test loss", "n"], rows, (0,))
