"""Plot a table's accuracy against parameters, from result files alone. Needs matplotlib."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from npas.reporting.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


def available() -> bool:
    """Return whether plots can be made here: matplotlib comes with `pip install npas[plots]`."""
    return importlib.util.find_spec("matplotlib") is not None


def possible(stem: str | Path) -> bool:
    """Return whether `stem.png` can be drawn here; where matplotlib is missing, warn."""
    if not available():
        name = f"{Path(stem).name}.png"
        log.warning("%s is not drawn, for want of matplotlib: pip install 'npas[plots]'", name)
    return available()


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write `stem.png` and `stem.svg`, the same files from the same figure, whenever it is drawn.

    SVG needs the figure to be drawn in an `rc_context` with an `svg.hashsalt`, too.
    """
    paths = [Path(f"{stem}.png"), Path(f"{stem}.svg")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        # PNG and SVG name their metadata differently; both would carry versions or dates.
        undated = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=undated)
    return paths


def accuracy_against_parameters(
    table: Table, cells: Sequence[Cell], stem: str | Path
) -> list[Path]:
    """Write `stem.png` and `stem.svg`, a line for each series; nothing where no run is done.

    A cross on the lower edge is a network of which runs have diverged. Raises ValueError where
    matplotlib is not installed.
    """
    if not available():
        raise ValueError("plots need matplotlib: pip install 'npas[plots]'")
    points = _points(table, cells)
    if not any(math.isfinite(point.mean) for values in points.values() for point in values):
        return []
    # The object interface leaves the program's own plots and backend alone.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": table.name}):  # the same file from the same results
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        # One budget: who is compared stands along the axis, not the parameters.
        alone = len(points) > 2 and all(len(values) == 1 for values in points.values())
        crosses: list[int] = []
        for place, (series, values) in enumerate(points.items()):
            values.sort()
            means, spreads = [point.mean for point in values], [point.spread for point in values]
            across = [place] if alone else [point.parameters for point in values]
            bars = axes.errorbar(across, means, yerr=spreads, marker="o", capsize=3, label=series)
            if len(means) == 1 and not alone:  # what the others are compared with
                axes.axhline(means[0], color=bars.lines[0].get_color(), linestyle=":")
            crosses += [x for x, point in zip(across, values, strict=True) if point.diverged]
        if crosses:
            edge = axes.get_xaxis_transform()
            axes.plot(
                crosses, [0.0] * len(crosses), "kx", transform=edge, label="diverged", clip_on=False
            )
        if alone:
            names = [f"{name}\n{values[0].parameters:,}" for name, values in points.items()]
            axes.set_xticks(range(len(names)), names, fontsize="small")
            axes.set_xlabel("and trainable parameters")
        else:
            axes.set_xscale("log")
            axes.set_xlabel("trainable parameters")
        if crosses or not alone:
            axes.legend()
        axes.set_ylabel(table.heading)
        axes.set_title(table.title, fontsize="medium")
        axes.grid(alpha=0.3)
        return save(figure, stem)


@dataclass(frozen=True, order=True)
class _Point:
    parameters: int
    mean: float  # NaN where no run is done
    spread: float
    diverged: bool  # any of its runs


def _points(table: Table, cells: Sequence[Cell]) -> dict[str, list[_Point]]:
    """Return what is known of each series, done or diverged."""
    points: dict[str, list[_Point]] = {}
    for cell in cells:
        summary, parameters = cell.summary(table), cell.parameters()
        diverged = bool(cell.having("diverged"))
        if parameters is not None and (summary is not None or diverged):
            mean, spread = (summary.mean, summary.std or 0.0) if summary else (math.nan, 0.0)
            points.setdefault(cell.row.series, []).append(
                _Point(parameters, mean, spread, diverged)
            )
    return points
