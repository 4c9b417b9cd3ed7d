"""Plots of tables against parameters, and of the groups that a search has found.

All plots of npas use `draw`, which gives the same files for the same data. They need matplotlib:
`pip install npas[plots]`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npas.reporting.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from npas.training.grouping import Grouping

log = logging.getLogger(__name__)

COLOURS = 10  # of lines, before they repeat
LONG = 6  # series: a longer legend would cover the lines, and stands beside them
VECTORS = {  # what was clustered, by method
    "learned": "what the layers mix by (coefficients or embeddings)",
    "gradient": "how the layers' gradients agree with the others'",
}


def available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(
    stem: str | Path,
    salt: str,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
    layout: Any = "constrained",
) -> list[Path]:
    """Write `stem.png` and `stem.svg` of a figure that `paint` draws; `size` is in inches.

    `salt` makes SVG ids reproducible. Without matplotlib, warn and return nothing.
    """
    stem = Path(stem)
    if not available():
        log.warning("%s.png needs matplotlib: pip install 'npas[plots]'", stem.name)
        return []
    # The object interface does not affect the program's own plots and backend.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    paths = [Path(f"{stem}.png"), Path(f"{stem}.svg")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout=layout)
        paint(figure)
        for path in paths:
            # Remove the date or version from the file's metadata.
            undated = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(path, dpi=150, metadata=undated)
    return paths


def against_parameters(
    table: Table, cells: Sequence[Cell], stem: str | Path, with_bytes: bool = False
) -> list[Path]:
    """Draw the table's metric against parameters, a line per series; nothing without runs.

    A cross on the lower edge marks a network with diverged runs. `with_bytes` adds a panel against
    the bytes of artifacts.
    """
    sizes = {"trainable parameters": Cell.parameters}
    if with_bytes:
        sizes["bytes of the artifact"] = Cell.artifact_bytes
    panels = {name: _points(table, cells, size) for name, size in sizes.items()}
    known = [point for points in panels.values() for series in points.values() for point in series]
    if not any(math.isfinite(mean) for _, mean, *_ in known):
        return []

    def paint(figure: Figure) -> None:
        all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for i, (axes, (name, points)) in enumerate(zip(all_axes, panels.items(), strict=True)):
            paint_panel(axes, points, name, has_legend=i == 0)
        all_axes[0].set_ylabel(table.heading)
        titled = figure.suptitle if with_bytes else all_axes[0].set_title
        titled(table.title, fontsize="medium")

    has_long_legend = len(next(iter(panels.values()))) > LONG
    width = (11.0 if with_bytes else 6.4) + 3.0 * has_long_legend
    return draw(stem, table.name, (width, 4.2), paint)


against_bytes_too = functools.partial(against_parameters, with_bytes=True)


# By series: size, mean (NaN without a finished run), spread, and whether any run has diverged.
Points = dict[str, list[tuple[int, float, float, bool]]]


def _points(table: Table, cells: Sequence[Cell], size: Callable[[Cell], int | None]) -> Points:
    points: Points = {}
    for cell in cells:
        summary, across = cell.summary(table), size(cell)
        diverged = bool(cell.having("diverged"))
        if across is not None and (summary is not None or diverged):
            mean, spread = (summary.mean, summary.std or 0.0) if summary else (math.nan, 0.0)
            points.setdefault(cell.row.series, []).append((across, mean, spread, diverged))
    return points


def paint_panel(axes: Any, points: Points, name: str, *, has_legend: bool = True) -> None:
    """Draw points against their sizes, which are called `name`, a line per series."""
    # With one budget per series, the axis shows the series and not the parameters.
    is_single = len(points) > 2 and all(len(values) == 1 for values in points.values())
    few = sum(len(values) == 1 for values in points.values()) <= 5
    crosses: list[int] = []
    for i, (series, values) in enumerate(points.items()):
        counts, means, spreads, diverged = zip(*sorted(values), strict=True)
        across = [i] if is_single else counts
        marker = "osv^D"[i // COLOURS % 5]  # since colours repeat
        bars = axes.errorbar(across, means, yerr=spreads, marker=marker, capsize=3, label=series)
        if len(means) == 1 and (few or series == "dense network") and not is_single:  # a baseline
            axes.axhline(means[0], color=bars.lines[0].get_color(), linestyle=":")
        crosses += [x for x, has_diverged in zip(across, diverged, strict=True) if has_diverged]
    if crosses:
        edge, zeros = axes.get_xaxis_transform(), [0.0] * len(crosses)
        axes.plot(crosses, zeros, "kx", transform=edge, label="diverged", clip_on=False)
    if is_single:
        names = [f"{series}\n{values[0][0]:,}" for series, values in points.items()]
        axes.set_xticks(range(len(names)), names, fontsize="small")
        axes.set_xlabel(f"and {name}")
    else:
        axes.set_xscale("log")
        axes.set_xlabel(name)
    if has_legend and (crosses or not is_single):
        if len(points) > LONG:
            axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        else:
            axes.legend()
    axes.grid(alpha=0.3)


def groups(grouping: Grouping, run_dir: Path) -> list[Path]:
    """Draw learned groups into the run's folder: layers by depth, and the clustered vectors."""
    layers, members = [*grouping.groups], [*grouping.groups.values()]
    index = {group: i for i, group in enumerate(dict.fromkeys(members))}
    few = len(index) <= 10
    vectors_LV = np.array([grouping.vectors[layer] for layer in layers])
    if grouping.method == "gradient":
        np.fill_diagonal(vectors_LV, 0.0)  # each layer's agreement with itself
    points_L2, shares = principal_components(vectors_LV)

    def paint(figure: Figure) -> None:
        from matplotlib import colormaps

        tens, many = colormaps["tab10"], colormaps["turbo"]
        colours = [tens(index[g]) if few else many(index[g] / len(index)) for g in members]
        depth, plane = figure.subplots(1, 2, width_ratios=(1, 1.2))
        depth.scatter([index[g] for g in members], range(len(layers)), c=colours, marker="s", s=45)
        numbered = [f"{layer.removesuffix('.weight')}  {i}" for i, layer in enumerate(layers, 1)]
        depth.set_yticks(range(len(layers)), numbered, fontsize=7)
        depth.set_ylim(len(layers) - 0.3, -0.7)  # the first layer on top
        depth.set_xticks(range(len(index)), [*index], fontsize=8, rotation=30 if few else 90)
        depth.set_xlim(-0.6, len(index) - 0.4)
        depth.set_title(f"{len(layers)} layers in {len(index)} groups", fontsize="medium")
        plane.scatter(points_L2[:, 0], points_L2[:, 1], c=colours, s=170, alpha=0.85)
        for i, (x, y) in enumerate(points_L2, 1):
            plane.annotate(str(i), (x, y), ha="center", va="center", fontsize=7)
        plane.set_xlabel(f"first principal component ({shares[0]:.0%} of variance)")
        plane.set_ylabel(f"second ({shares[1]:.0%})")
        plane.set_title(VECTORS[grouping.method], fontsize="medium")
        plane.margins(0.08)
        for axes in (depth, plane):
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)

    size = (11, max(4.5, 0.17 * len(layers) + 1.3))
    return draw(run_dir / "groups", grouping.method, size, paint)


def principal_components(vectors_LV: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the first two principal components of each row, and their shares of the variance."""
    centred_LV = vectors_LV - vectors_LV.mean(axis=0)
    # Pad with zeros: vectors may have a single dimension.
    left, sizes, _ = np.linalg.svd(np.pad(centred_LV, ((0, 2), (0, 2))), full_matrices=False)
    first, second = sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-300)
    return (left * sizes)[:-2, :2], (float(first), float(second))
