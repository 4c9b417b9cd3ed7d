"""Plot a curriculum: F1 on the band being trained, and on those still to come.

All of it comes from the `history` of result files: F1 on held-out grids of each band of distances,
after each epoch.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from npas.reporting import plots
from npas.reporting.results import Result
from npas.reporting.tables import Cell, Summary, grid_line, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN = "val/f1_{}"


@dataclass(frozen=True)
class Run:
    """One run's F1 on each band: by the epoch it was measured after, by the band's place."""

    bands: tuple[int, ...]  # the longest distance of each
    phase_epochs: int
    epochs: int
    f1: dict[int, tuple[float | None, ...]]

    def phase(self, epoch: int) -> int:
        """Return the phase of the epoch, whose own band is of the same place; both from 0 on."""
        return min((epoch - 1) // self.phase_epochs, len(self.bands) - 1)

    def last_epoch(self, phase: int) -> int | None:
        """Return the last epoch of the phase that was measured; None where none was."""
        return max((epoch for epoch in self.f1 if self.phase(epoch) == phase), default=None)

    def current(self, epoch: int) -> float | None:
        """Return F1 on the band that the epoch's phase is the first to train on."""
        return self.f1[epoch][self.phase(epoch)]

    def later(self, epoch: int) -> float | None:
        """Return mean F1 on the bands of later phases; None in the last."""
        return _mean(self.f1[epoch][self.phase(epoch) + 1 :])


def read(result: Result) -> Run:
    """Read a run's history; ValueError where it has none of every band."""
    task, history = result.config["task"], result.history or {}
    bands = tuple(task["phases"])
    columns = [history.get(COLUMN.format(band)) for band in bands]
    if None in columns:
        raise ValueError(
            f"the result of {result.exp} with seed {result.seed} has no history of every band: run "
            "it again with this version"
        )
    f1 = zip(*(column or () for column in columns), strict=True)
    measured = dict(zip(history["epoch"], f1, strict=True))
    return Run(bands, task["phase_epochs"], result.config["epochs"], measured)


def appendix(cells: Sequence[Cell]) -> list[str]:
    """Write F1 at the end of each phase, on its own and on each later band; [] without runs."""
    networks = _networks(cells)
    if not networks:
        return []
    (first, *_), *_ = networks.values()
    bands = [
        f"{before + 1} to {longest}"
        for before, longest in zip([0, *first.bands], first.bands, strict=False)
    ]
    lines = [
        "## F1 after each phase, %",
        "",
        "On held-out grids of the band of distances that the phase adds, in bold, and of each later"
        " band, which no training has seen by then. Mean over n runs ± standard deviation of a"
        " single run.",
        "",
        grid_line(["trained up to", "network", *(f"{band} moves" for band in bands), "n"]),
        grid_line(["---:", "---", *["---:"] * len(bands), "---:"]),
    ]
    for phase, longest in enumerate(first.bands):
        for name, runs in networks.items():
            ends = [(run, epoch) for run in runs if (epoch := run.last_epoch(phase)) is not None]
            if not ends:
                continue
            texts = [""] * phase
            for band in range(phase, len(bands)):
                figure = _summary([run.f1[epoch][band] for run, epoch in ends])
                texts.append(str(figure or "") if band > phase else f"**{figure or ''}**")
            lines.append(grid_line([f"{longest}", name, *texts, str(len(ends))]))
    if diverged := _diverged(cells):
        lines += ["", f"Left out, for it diverged: {'; '.join(diverged)}."]
    return [*lines, ""]


def draw(cells: Sequence[Cell], stem: str | Path, title: str) -> list[Path]:
    """Write `stem.png` and `stem.svg`: F1 over epochs, a curve a network; nothing without runs."""
    networks = _networks(cells)
    if not networks or not plots.possible(stem):
        return []
    # The object interface leaves the program's own plots and backend alone.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context({"svg.hashsalt": title}):  # the same file from the same results
        figure = Figure(figsize=(8.5, 7), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for name, runs in networks.items():
            label = f"{name} (n = {len(runs)})"
            epochs = sorted({epoch for run in runs for epoch in run.f1})
            for axes, which in ((above, Run.current), (below, Run.later)):
                values = [
                    [which(run, epoch) for run in runs if epoch in run.f1] for epoch in epochs
                ]
                _curve(axes, epochs, [_summary(column) for column in values], label)
        (first, *_), *_ = networks.values()
        _mark_phases(above, first)
        _mark_phases(below, first, named=False)
        above.set_title("the band of distances that the phase adds", fontsize="medium", pad=16)
        below.set_title("later bands, not trained on yet: their mean", fontsize="medium")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (above, below):
            axes.set_ylabel("F1 on held-out grids, %")
            axes.grid(alpha=0.3)
        above.legend(loc="lower right", fontsize="small")
        spread = any(len(runs) > 1 for runs in networks.values())
        shaded = "\nmean over n runs, shaded: ± standard deviation of a single run"
        left_out = "".join(f"\ndiverged: {name}" for name in _diverged(cells))
        figure.suptitle(title + (shaded if spread else "") + left_out, fontsize="medium")
        return plots.save(figure, stem)


def _networks(cells: Sequence[Cell]) -> dict[str, list[Run]]:
    """Gather the runs that are done, by network."""
    found = {
        cell.row.label: [read(result) for _, result in sorted(cell.having("done").items())]
        for cell in cells
    }
    return {name: runs for name, runs in found.items() if runs}


def _diverged(cells: Sequence[Cell]) -> list[str]:
    """Return the names of the runs that diverged, as "SCNN (seed 0, 2)"."""
    found = {cell.row.label: sorted(cell.having("diverged")) for cell in cells}
    return [f"{name} (seed {', '.join(map(str, seeds))})" for name, seeds in found.items() if seeds]


def _curve(
    axes: Axes, epochs: Sequence[int], figures: Sequence[Summary | None], label: str
) -> None:
    nothing = float("nan")
    means = [nothing if figure is None else figure.mean for figure in figures]
    spreads = [nothing if figure is None else figure.std or 0.0 for figure in figures]
    (line,) = axes.plot(epochs, means, label=label, linewidth=1.5)
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _mark_phases(axes: Axes, run: Run, named: bool = True) -> None:
    """Draw a line where a new phase begins, and say how far apart its points are."""
    for phase, longest in enumerate(run.bands):
        start = phase * run.phase_epochs + 0.5
        if start > run.epochs:
            break
        if phase:
            axes.axvline(start, color="0.4", linestyle="--", linewidth=0.8)
        if named:
            where = axes.get_xaxis_transform()
            text = f"{longest} moves" if phase == 0 else str(longest)
            axes.text(start, 1.01, f"up to {text}", transform=where, fontsize=7, va="bottom")


def _summary(values: Sequence[float | None]) -> Summary | None:
    return summarize([value for value in values if value is not None])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
