"""Plots of npas-fold: similarity of layers, and the folded architecture."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas.reporting import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# --- layer similarity matrices

# One group: "group", "layers" and their "matrix" of rows. A value is None for two layers that mix
# different templates and cannot be compared.
Similarity = Mapping[str, Any]

MEANING = "similarity of two layers: abs(cosine) of their coefficients"
INCOMPARABLE = "\ngrey: the two mix different templates"
MOST_EPOCHS = 12  # columns of `similarity_over_epochs`
MOST_NUMBERS = 10  # layers of a group whose cells show their values


def similarity(similarities: Sequence[Similarity], stem: str | Path, title: str) -> list[Path]:
    """Draw a heat map for each group of two or more layers, if any."""
    shown = [own for own in similarities if len(own["layers"]) > 1]
    if not shown:
        return []
    columns = min(len(shown), 3 if len(shown) <= 12 else 4)
    rows = math.ceil(len(shown) / columns)
    most = max(len(own["layers"]) for own in shown)
    side = min(max(3.2, 0.3 * most + 1.6), 12.0)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(shown) :]:
            axes.remove()
        for axes, own in zip(panels, shown, strict=False):
            image = _heat_map(axes, own)
            _name_layers(axes, own, font=min(8.0, 72 * 0.6 * side / (most + 5)))
        bar = figure.colorbar(image, ax=list(panels[: len(shown)]), shrink=0.8)
        incomparable = any(None in row for own in shown for row in own["matrix"])
        bar.set_label(MEANING + INCOMPARABLE * incomparable, fontsize="small")
        figure.suptitle(title, fontsize="medium")

    return plots.draw(stem, title, (side * columns + 0.9, side * rows + 0.5), paint)


def similarity_over_epochs(
    history: Sequence[tuple[int, Sequence[Similarity]]], stem: str | Path, title: str
) -> list[Path]:
    """Draw a row for each group of two or more layers, if any, and a column for each logged epoch.

    At most `MOST_EPOCHS` epochs are shown, evenly spread; of an epoch logged twice, the last one.
    """
    by_epoch = {
        epoch: {own["group"]: own for own in similarities if len(own["layers"]) > 1}
        for epoch, similarities in history
    }
    known = sorted(epoch for epoch, found in by_epoch.items() if found)
    shown = {round(k * (len(known) - 1) / (MOST_EPOCHS - 1)) for k in range(MOST_EPOCHS)}
    epochs = [epoch for i, epoch in enumerate(known) if i in shown]
    groups = list(dict.fromkeys(group for epoch in epochs for group in by_epoch[epoch]))
    if not epochs:
        return []

    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(groups), len(epochs), squeeze=False)
        for row, group in enumerate(groups):
            for column, epoch in enumerate(epochs):
                axes = panels[row, column]
                axes.set(xticks=[], yticks=[])
                if row == 0:
                    axes.set_title(f"epoch {epoch}", fontsize="small")
                if column == 0:
                    axes.set_ylabel(group, fontsize="small")
                if group in by_epoch[epoch]:
                    image = _heat_map(axes, by_epoch[epoch][group])
        figure.colorbar(image, ax=panels, shrink=0.8).set_label("abs(cosine)", fontsize="small")
        figure.suptitle(title, fontsize="medium")

    size = (max(1.15 * len(epochs) + 1.6, 4.0), max(1.15 * len(groups) + 0.9, 2.6))
    return plots.draw(stem, f"{title} {epochs}", size, paint)


def _heat_map(axes: Axes, own: Similarity) -> AxesImage:
    from matplotlib import colormaps

    matrix_LL = [[math.nan if value is None else value for value in row] for row in own["matrix"]]
    axes.set_facecolor("0.85")  # shows through where two layers cannot be compared
    colours = colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    return axes.imshow(matrix_LL, vmin=0, vmax=1, cmap=colours, interpolation="nearest")


def _name_layers(axes: Axes, own: Similarity, font: float) -> None:
    """Label both axes with the layers, and the title with the common prefix of their names."""
    layers = [str(layer).removesuffix(".weight") for layer in own["layers"]]
    parts = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    same = itertools.takewhile(lambda names: len(set(names)) == 1, parts)
    common = ".".join(names[0] for names in same)
    names = [layer.removeprefix(f"{common}.") if common else layer for layer in layers]
    axes.set_xticks(range(len(names)), names, fontsize=font, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    title = f"{own['group']}: {len(layers)} layers{f' of {common}' if common else ''}"
    axes.set_title(title, fontsize="small")
    if len(names) <= MOST_NUMBERS:
        for i, row in enumerate(own["matrix"]):
            for j, value in enumerate(row):
                colour = "white" if value is not None and value < 0.6 else "black"
                text = "-" if value is None else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color=colour)


# --- the folded network

# A loop of a container, or one of its other blocks: "container" and the names of its "blocks", of
# which "period" remain and run "times" times, with "own" unshared values in all iterations.
Blocks = Mapping[str, Any]

# Inches: between boxes and of a box; the height of a line of boxes; the left edge of the first box.
STEP, WIDTH, HEIGHT = 1.5, 1.2, 0.7
LINE = 1.9
LEFT = 2.0
MOST_BOXES = 10  # in one line; a loop is never broken
LOOPED, PLAIN = "#cfe3f7", "#f2f2f2"


def folded(blocks: Sequence[Blocks], stem: str | Path, title: str) -> list[Path]:
    """Draw a row of boxes for each container, if any, with an arrow back for each loop."""
    lines = list(_lines(blocks))
    if not lines:
        return []
    boxes = max(sum(entry["period"] for entry in entries) for _, entries in lines)
    across, down = max(LEFT + STEP * boxes + 0.4, 7.5), LINE * len(lines)

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, down / (down + 0.6)))  # units are inches
        axes.set(xlim=(0, across), ylim=(-down, 0))
        axes.set_axis_off()
        for i, (label, entries) in enumerate(lines):
            _draw_line(axes, label, entries, -LINE * (i + 0.5))
        figure.suptitle(title, fontsize="medium")

    return plots.draw(stem, title, (across, down + 0.6), paint, layout=None)


def _lines(blocks: Sequence[Blocks]) -> Iterator[tuple[str, Sequence[Blocks]]]:
    """Yield each container's label and blocks; the rest of a long one follows without a label."""
    for container, found in itertools.groupby(blocks, key=lambda entry: entry["container"]):
        entries = list(found)
        before = sum(len(entry["blocks"]) for entry in entries)
        after = sum(entry["period"] for entry in entries)
        label = f"{container or 'network'}\n{before} blocks"
        if after != before:
            label += f",\n{after} left"
        line: list[Blocks] = []
        for entry in entries:
            if line and sum(e["period"] for e in [*line, entry]) > MOST_BOXES:
                yield label, line
                label, line = "", []
            line.append(entry)
        yield label, line


def _draw_line(axes: Axes, label: str, entries: Sequence[Blocks], y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.text(0.1, y, label, va="center", fontsize=9)
    style, x = "round,pad=0.05,rounding_size=0.1", LEFT
    for entry in entries:
        first, times = x, entry["times"]
        for i in range(entry["period"]):
            if x > LEFT:
                _arrow(axes, [(x - STEP + WIDTH, y), (x, y)])
            names = " = ".join(entry["blocks"][i :: entry["period"]])
            text = textwrap.fill(names, 19, break_long_words=False, break_on_hyphens=False)
            corner, size = (x + 0.05, y - HEIGHT / 2 + 0.05), (WIDTH - 0.1, HEIGHT - 0.1)
            how: Any = {"fc": LOOPED if times > 1 else PLAIN, "ec": "0.3", "lw": 1}
            axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, **how))
            font = 9 if len(text) < 17 else 6.5
            axes.text(x + WIDTH / 2, y, text, ha="center", va="center", fontsize=font)
            x += STEP
        if times > 1:  # an arrow back above the boxes, and a note on unshared values below
            start, end, top = x - STEP + WIDTH - 0.2, first + 0.2, y + HEIGHT / 2
            _arrow(axes, [(start, top), (start, top + 0.3), (end, top + 0.3), (end, top)])
            middle, mark = (start + end) / 2, f"\N{MULTIPLICATION SIGN}{times}"
            axes.text(middle, top + 0.34, mark, ha="center", va="bottom", fontsize=11)
            kept = f"own norms, biases, statistics\nfor each of {times}, {entry['own']:,} in all"
            if entry["own"]:
                axes.text(middle, top - HEIGHT - 0.05, kept, ha="center", va="top", fontsize=6)


def _arrow(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    how: Any = {"mutation_scale": 10, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.0, "color": "0.3"}
    axes.add_patch(FancyArrowPatch(path=Line(list(points)), arrowstyle="-|>", **how))
