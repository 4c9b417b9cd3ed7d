"""Tables and plots of a curriculum: F1 on the current band of distances and on later ones.

The figures are from the `history` of result files: F1 on held-out grids of each band after each
epoch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npas.reporting import plots
from npas.reporting.markdown import grid
from npas.reporting.results import Metric, Result
from npas.reporting.tables import Cell, Table, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Run(NamedTuple):
    """One run's F1 on each band, by epoch."""

    bands: tuple[int, ...]  # the longest distance of each
    phase_epochs: int
    epochs: int
    f1: dict[int, tuple[Metric, ...]]

    def phase(self, epoch: int) -> int:
        """Return the index of the epoch's phase, which is also that of the band it adds."""
        return min((epoch - 1) // self.phase_epochs, len(self.bands) - 1)

    def last_epoch(self, phase: int) -> int | None:
        """Return the last measured epoch of the phase; None if there is none."""
        return max((epoch for epoch in self.f1 if self.phase(epoch) == phase), default=None)

    def current(self, epoch: int) -> Metric:
        """Return F1 on the band that the epoch's phase adds."""
        return self.f1[epoch][self.phase(epoch)]

    def later(self, epoch: int) -> Metric:
        """Return mean F1 on the bands of later phases; None in the last."""
        known = [f1 for f1 in self.f1[epoch][self.phase(epoch) + 1 :] if f1 is not None]
        return statistics.fmean(known) if known else None


def read(result: Result) -> Run:
    """Read a run's history. Raises ValueError if a band is missing."""
    task, history = result.config["task"], result.history or {}
    bands = tuple(task["phases"])
    try:
        f1 = zip(*(history[f"val/f1_{band}"] for band in bands), strict=True)
    except KeyError:
        name = f"the result of {result.exp} with seed {result.seed}"
        raise ValueError(f"{name} has no history of every band: run it again") from None
    measured = dict(zip(history["epoch"], f1, strict=True))
    return Run(bands, task["phase_epochs"], result.config["epochs"], measured)


def _networks(cells: Sequence[Cell]) -> tuple[dict[str, list[Run]], list[str]]:
    """Return the finished runs by network, and those that diverged, as "SCNN (seed 0, 2)"."""
    found = {
        cell.row.label: [read(result) for _, result in sorted(cell.having("done").items())]
        for cell in cells
    }
    diverged = [(cell.row.label, sorted(cell.having("diverged"))) for cell in cells]
    named = [f"{name} (seed {', '.join(map(str, seeds))})" for name, seeds in diverged if seeds]
    return {name: runs for name, runs in found.items() if runs}, named


def appendix(cells: Sequence[Cell]) -> list[str]:
    """Return a table of F1 at the end of each phase, on its band and on later ones, if any runs."""
    networks, diverged = _networks(cells)
    if not networks:
        return []
    bands = next(iter(networks.values()))[0].bands
    rows = []
    for phase, longest in enumerate(bands):
        for name, runs in networks.items():
            ends = [(run, epoch) for run in runs if (epoch := run.last_epoch(phase)) is not None]
            means = [
                str(summarize([run.f1[epoch][band] for run, epoch in ends]) or "")
                for band in range(phase, len(bands))
            ]
            if ends:
                own = [*[""] * phase, f"**{means[0]}**", *means[1:]]
                rows.append([str(longest), name, *own, str(len(ends))])
    moves = [f"{a + 1} to {b} moves" for a, b in zip((0, *bands), bands, strict=False)]
    lines = [
        "## F1 after each phase, %",
        "",
        "On held-out grids of the band of distances that the phase adds, in bold, and of each later"
        " band, which no training has seen by then. Mean over n runs ± standard deviation of a"
        " single run.",
        "",
        *grid(["trained up to", "network", *moves, "n"], rows, left=(1,)),
    ]
    if diverged:
        lines += ["", f"Left out, for it diverged: {'; '.join(diverged)}."]
    return [*lines, ""]


def draw(table: Table, cells: Sequence[Cell], stem: Path) -> list[Path]:
    """Draw F1 over epochs, a curve per network; nothing without runs."""
    networks, diverged = _networks(cells)
    if not networks:
        return []

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        above, below = figure.subplots(2, 1, sharex=True)
        for name, runs in networks.items():
            _curve(above, f"{name} (n = {len(runs)})", runs, Run.current)
            _curve(below, "", runs, Run.later)
        first = next(iter(networks.values()))[0]
        for phase, longest in enumerate(first.bands):
            start = phase * first.phase_epochs + 0.5
            if start > first.epochs:
                break
            for axes in (above, below) if phase else ():
                axes.axvline(start, color="0.4", linestyle="--", linewidth=0.8)
            text, where = f"up to {longest}{'' if phase else ' moves'}", above.get_xaxis_transform()
            above.text(start, 1.01, text, transform=where, fontsize=7, va="bottom")
        above.set_title("the band of distances that the phase adds", fontsize="medium", pad=16)
        below.set_title("later bands, not trained on yet: their mean", fontsize="medium")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (above, below):
            axes.set_ylabel("F1 on held-out grids, %")
            axes.grid(alpha=0.3)
        above.legend(loc="lower right", fontsize="small")
        title = table.title
        if any(len(runs) > 1 for runs in networks.values()):
            title += "\nmean over n runs, shaded: ± standard deviation of a single run"
        title += "".join(f"\ndiverged: {name}" for name in diverged)
        figure.suptitle(title, fontsize="medium")

    return plots.draw(stem, table.title, (8.5, 7), paint)


def _curve(
    axes: Axes, label: str, runs: Sequence[Run], which: Callable[[Run, int], Metric]
) -> None:
    """Draw the mean over runs and a band of one standard deviation, with gaps without figures."""
    epochs = sorted({epoch for run in runs for epoch in run.f1})
    known = [summarize([which(run, e) for run in runs if e in run.f1]) for e in epochs]
    means = [figure.mean if figure else float("nan") for figure in known]
    spreads = [(figure.std or 0.0) if figure else 0.0 for figure in known]
    (line,) = axes.plot(epochs, means, label=label, linewidth=1.5)
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
