"""Make a page of the folded networks from what npas-fold wrote of each, its `fold.json`, alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE_NAME = "fold.json"
HEAD = (
    "run",
    "threshold",
    "layers",
    "different weights",
    "parameters",
    "metric",
    "before",
    "tied",
    "recalibrated and folded",
)


def page(root: str | Path) -> str:
    """Return a table of all folds below `root`, in markdown; ValueError for a damaged file."""
    paths = sorted(Path(root).rglob(FILE_NAME))
    rows = [_row(path, Path(root)) for path in paths]
    return "\n".join(
        [
            "# Folded networks",
            "",
            "What `npas-fold` made of trained networks: layers whose coefficients agree became one,"
            " runs of equal blocks became loops. A threshold that was chosen, was chosen on"
            " held-out data: the one of fewest layers that costs no more than the tolerance there."
            " The metric is of the part named, which chose nothing.",
            "",
            _line(HEAD),
            _line(["---", *["---:"] * (len(HEAD) - 1)]),
            *rows,
            "",
            f"Made from the `{FILE_NAME}` of each folder by `python scripts/fold_page.py`; never"
            " edited.",
            "",
        ]
    )


def _row(path: Path, root: Path) -> str:
    try:
        fold = json.loads(path.read_text(encoding="utf-8"))
        folder, metric, figures = path.parent.relative_to(root), fold["metric"], fold["metrics"]
        threshold = str(fold["threshold"])
        if "chosen_on" in fold:
            threshold += f" ({fold['chosen_on']}, tolerance {fold['tolerance']})"
        unfinished = " (unfinished run)" if "unfinished" in fold else ""
        return _line(
            [
                f"[{folder}]({folder}/folded.png){unfinished}",
                threshold,
                f"{fold['layers_before']} → {fold['layers']}",
                str(fold["weights"]),
                f"{fold['parameters_before']:,} → {fold['parameters']:,}",
                f"{fold['split']} {metric}, %",
                *(_figure(figures[name][metric]) for name in ("before", "tied", "folded")),
            ]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of npas-fold: {error!r}") from None


def _figure(value: Any) -> str:
    return "no number" if value is None else f"{value:.2f}"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
