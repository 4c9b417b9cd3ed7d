"""Draw the groups that a search has found: layers along depth, and what told them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from npas.reporting import plots
from npas.training.grouping import Grouping

TOLD_APART_BY = {
    "learned": "what the layers mix by (coefficients or embeddings)",
    "gradient": "how the layers' gradients agree with the others'",
}


def draw(grouping: Grouping, run_dir: Path) -> list[Path]:
    """Write `groups.png` and `groups.svg` into the run's folder; without matplotlib, only warn."""
    if not plots.possible("groups"):
        return []
    # The object interface leaves the program's own plots and backend alone.
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    layers, groups = [*grouping.groups], [*grouping.groups.values()]
    names = list(dict.fromkeys(groups))
    place = {group: i for i, group in enumerate(names)}
    few = len(names) <= 10
    colours = [
        colormaps["tab10"](place[group]) if few else colormaps["turbo"](place[group] / len(names))
        for group in groups
    ]
    vectors_LV = np.array([grouping.vectors[layer] for layer in layers])
    if grouping.method == "gradient":
        np.fill_diagonal(vectors_LV, 0.0)  # that each agrees with itself tells nothing
    points_L2, shares = principal_components(vectors_LV)
    with rc_context({"svg.hashsalt": grouping.method}):  # the same file from the same groups
        height = max(4.5, 0.17 * len(layers) + 1.3)
        figure = Figure(figsize=(11, height), layout="constrained")
        depth, plane = figure.subplots(1, 2, width_ratios=(1, 1.2))

        depth.scatter([place[g] for g in groups], range(len(layers)), c=colours, marker="s", s=45)
        numbered = [f"{_short(layer)}  {i}" for i, layer in enumerate(layers, 1)]
        depth.set_yticks(range(len(layers)), numbered, fontsize=7)
        depth.set_ylim(len(layers) - 0.3, -0.7)  # the first layer on top
        depth.set_xticks(range(len(names)), names, fontsize=8, rotation=90 if not few else 30)
        depth.set_xlim(-0.6, len(names) - 0.4)
        depth.set_title(f"{len(layers)} layers in {len(names)} groups", fontsize="medium")

        plane.scatter(points_L2[:, 0], points_L2[:, 1], c=colours, s=170, alpha=0.85)
        for i, (x, y) in enumerate(points_L2, 1):
            plane.annotate(str(i), (x, y), ha="center", va="center", fontsize=7)
        plane.set_xlabel(f"first principal component ({shares[0]:.0%} of variance)")
        plane.set_ylabel(f"second ({shares[1]:.0%})")
        plane.set_title(TOLD_APART_BY[grouping.method], fontsize="medium")
        plane.margins(0.08)
        for axes in (depth, plane):
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
        return plots.save(figure, run_dir / "groups")


def principal_components(vectors_LV: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the first two principal components of each row, and their shares of the variance."""
    centred_LV = vectors_LV - vectors_LV.mean(axis=0)
    # Two more columns of nothing, for what has but one dimension.
    left, sizes, _ = np.linalg.svd(np.pad(centred_LV, ((0, 2), (0, 2))), full_matrices=False)
    first, second = sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-300)
    return (left * sizes)[:-2, :2], (float(first), float(second))


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")
