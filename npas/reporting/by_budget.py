"""Summarize stored runs by budget over their seeds, as a table, a plot and rows of the report."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas.config import is_excluded
from npas.reporting.run_index import Run, read
from npas.utils.printing import LOSSES, columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from npas.reporting.tables import Summary

HEADS = ("runs", "budget", "parameters", "metric", "value", "n")
LONGEST = 80  # characters of a series in a legend


@dataclass(frozen=True)
class Point:
    """The finished runs of one setting, which differ only in their seeds."""

    series: str  # the experiment, and the settings that differ between its runs
    budget: str
    used: int  # trainable parameters
    metric: str
    values: tuple[float, ...]  # one per seed

    @property
    def summary(self) -> Summary:
        from npas.reporting.tables import summarize

        found = summarize(self.values, self.metric)
        assert found is not None
        return found

    def cells(self) -> list[str]:
        unit = "" if self.metric in LOSSES else ", %"
        shown = [f"{self.metric}{unit}", str(self.summary), str(len(self.values))]
        return [self.series, self.budget, f"{self.used:,}", *shown]


def points(runs: Iterable[Run]) -> list[Point]:
    """Return a point for each setting with finished runs, sorted by series and parameters."""
    found: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    by_exp: dict[str, list[tuple[Run, dict[str, Any]]]] = defaultdict(list)
    for run in runs:
        if run.status == "done" and None not in (run.value, run.used, run.metric):
            by_exp[run.exp].append((run, run.config()))
    for exp, own in by_exp.items():
        keys = sorted({key for _, config in own for key in config} - {"exp", "budget", "seed"})
        differing = [
            key
            for key in keys
            if not is_excluded(key) and len({repr(config.get(key)) for _, config in own}) > 1
        ]
        for run, config in own:
            assert run.value is not None and run.used is not None and run.metric is not None
            settings = ", ".join(f"{key}={config.get(key)}" for key in differing)
            series = f"{exp}: {settings}" if settings else exp
            found[series, run.budget, run.used, run.metric].append(run.value)
    return sorted(
        (Point(*key, tuple(values)) for key, values in found.items()),
        key=lambda point: (point.series, point.used),
    )


def table(found: Sequence[Point]) -> list[str]:
    """Return the points as aligned lines."""
    return columns([HEADS, *(point.cells() for point in found)], right=(2, 4, 5))


def close_sweep(folders: Sequence[Path], echo: Callable[[str], None]) -> None:
    """Print a table of the runs in these folders by budget, and plot it.

    A single setting is not printed. The plot is by_budget.png and .svg in the experiment's folder,
    or in the root of several experiments.
    """
    found = points(map(read, folders))
    if len(found) < 2:
        return
    for line in ["", *table(found)]:
        echo(line)
    stem = Path(os.path.commonpath([folder.parent for folder in folders]), "by_budget")
    title = ", ".join(dict.fromkeys(folder.parent.name for folder in folders))
    try:
        if paths := draw(found, stem, title):
            echo(f"plot: {paths[0]}")
    except OSError as error:
        echo(f"{stem}.png cannot be written ({error.strerror})")


def draw(found: Sequence[Point], stem: Path, title: str) -> list[Path]:
    """Plot the metric against parameters as .png and .svg, a line per series.

    Draws nothing if all points have the same parameters, if metrics differ, if so many settings do
    that a series' name would leave no room for the axes, or without matplotlib.
    """
    from npas.reporting import plots

    metrics, sizes = {p.metric for p in found}, {p.used for p in found}
    longest = max((len(point.series) for point in found), default=0)
    if len(metrics) != 1 or len(sizes) < 2 or longest > LONGEST or not plots.available():
        return []
    (metric,) = metrics
    points: plots.Points = {}
    for point in found:
        mean, spread = point.summary.mean, point.summary.std or 0.0
        points.setdefault(point.series, []).append((point.used, mean, spread, False))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        plots.paint_panel(axes, points, "trainable parameters")
        axes.set_ylabel(f"test {metric}{'' if metric in LOSSES else ', %'}")
        axes.set_title(title, fontsize="medium")

    return plots.draw(stem, title, (6.4, 4.2), paint)
