"""Draw layer similarity matrices: heat maps with layer names, and a strip of them over epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas.reporting import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# What one group's matrix is: its "group", its "layers" and their "matrix", row by row; None for
# two layers that mix different templates and so cannot be compared.
Similarity = Mapping[str, Any]

MEANING = "similarity of two layers: abs(cosine) of their coefficients"
INCOMPARABLE = "\ngrey: the two mix different templates"
MOST_EPOCHS = 12  # columns of a strip
MOST_NUMBERS = 10  # layers of a group up to which each cell's value is written into it


def draw(similarities: Sequence[Similarity], stem: str | Path, title: str) -> list[Path]:
    """Write `stem.png` and `stem.svg`, a heat map for each group of two or more layers.

    Nothing is written where there is no such group. Without matplotlib only a warning is given.
    """
    shown = [similarity for similarity in similarities if len(similarity["layers"]) > 1]
    if not shown or not plots.possible(stem):
        return []
    # The object interface leaves the program's own plots and backend alone.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(len(shown), 3 if len(shown) <= 12 else 4)
    rows = math.ceil(len(shown) / columns)
    most = max(len(similarity["layers"]) for similarity in shown)
    side = min(max(3.2, 0.3 * most + 1.6), 12.0)
    with rc_context({"svg.hashsalt": title}):  # the same file from the same matrices
        figure = Figure(figsize=(side * columns + 0.9, side * rows + 0.5), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(shown) :]:
            axes.remove()
        for axes, similarity in zip(panels, shown, strict=False):
            image = _heat_map(axes, similarity)
            _name_layers(axes, similarity, font=min(8.0, 72 * 0.6 * side / (most + 5)))
        bar = figure.colorbar(image, ax=list(panels[: len(shown)]), shrink=0.8)
        incomparable = any(None in row for similarity in shown for row in similarity["matrix"])
        bar.set_label(MEANING + INCOMPARABLE * incomparable, fontsize="small")
        figure.suptitle(title, fontsize="medium")
        return plots.save(figure, stem)


def draw_epochs(
    history: Sequence[tuple[int, Sequence[Similarity]]], stem: str | Path, title: str = ""
) -> list[Path]:
    """Write `stem.png` and `stem.svg`: a row for each group, a column for each logged epoch.

    Of more than `MOST_EPOCHS` epochs, as many are shown, spread evenly from the first to the last;
    an epoch that was logged twice is shown as logged last. Nothing is written where no epoch has a
    group of two or more layers. Without matplotlib only a warning is given.
    """
    by_epoch = {
        epoch: {s["group"]: s for s in similarities if len(s["layers"]) > 1}
        for epoch, similarities in history
    }
    epochs = thin(sorted(epoch for epoch, found in by_epoch.items() if found))
    groups = list(dict.fromkeys(group for epoch in epochs for group in by_epoch[epoch]))
    if not epochs or not plots.possible(stem):
        return []
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": f"{title} {epochs}"}):
        size = (1.15 * len(epochs) + 1.6, 1.15 * len(groups) + 0.9)
        figure = Figure(figsize=(max(size[0], 4.0), max(size[1], 2.6)), layout="constrained")
        panels = figure.subplots(len(groups), len(epochs), squeeze=False)
        for row, group in enumerate(groups):
            for column, epoch in enumerate(epochs):
                axes = panels[row, column]
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 0:
                    axes.set_title(f"epoch {epoch}", fontsize="small")
                if column == 0:
                    axes.set_ylabel(group, fontsize="small")
                if group in by_epoch[epoch]:
                    image = _heat_map(axes, by_epoch[epoch][group])
        figure.colorbar(image, ax=panels, shrink=0.8).set_label("abs(cosine)", fontsize="small")
        figure.suptitle(title or "Layer similarity over epochs", fontsize="medium")
        return plots.save(figure, stem)


def thin(epochs: Sequence[int], most: int = MOST_EPOCHS) -> list[int]:
    """Return at most `most` of the epochs, evenly spread, the first and the last among them."""
    if len(epochs) <= most:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (most - 1))] for i in range(most)]


def _heat_map(axes: Axes, similarity: Similarity) -> AxesImage:
    from matplotlib import colormaps

    matrix_LL = [
        [math.nan if value is None else value for value in row] for row in similarity["matrix"]
    ]
    axes.set_facecolor("0.85")  # shows through where two layers cannot be compared
    colours = colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    return axes.imshow(matrix_LL, vmin=0, vmax=1, cmap=colours, interpolation="nearest")


def _name_layers(axes: Axes, similarity: Similarity, font: float) -> None:
    """Write the layers along both axes, what their names have in common into the title."""
    layers = [str(layer).removesuffix(".weight") for layer in similarity["layers"]]
    parts = [layer.split(".")[:-1] for layer in layers]
    shared = 0
    while all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    common = ".".join(parts[0][:shared])
    names = [layer.removeprefix(f"{common}.") if common else layer for layer in layers]
    axes.set_xticks(range(len(names)), names, fontsize=font, rotation=90)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.set_title(
        f"{similarity['group']}: {len(layers)} layers{f' of {common}' if common else ''}",
        fontsize="small",
    )
    if len(names) <= MOST_NUMBERS:
        for i, row in enumerate(similarity["matrix"]):
            for j, value in enumerate(row):
                colour = "white" if value is not None and value < 0.6 else "black"
                text = "-" if value is None else f"{value:.2f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color=colour)
