"""A page of all folded networks, from the `fold.json` files of npas-fold."""

from pathlib import Path
from typing import Any

from npas.reporting.markdown import grid
from npas.utils.files import reading
from npas.utils.json_data import read_json

FILE_NAME = "fold.json"
HEAD = (
    "run", "threshold", "layers", "different weights", "parameters", "metric", "before", "tied",
    "recalibrated and folded",
)  # fmt: skip


def page(root: Path) -> str:
    """Return a markdown table of all folds below `root`. Raises ValueError for a damaged file."""
    lines = [
        "# Folded networks",
        "",
        "What `npas-fold` made of trained networks: layers whose coefficients agree became one,"
        " runs of equal blocks became loops. A threshold that was chosen, was chosen on"
        " held-out data: the one of fewest layers that costs no more than the tolerance there."
        " The metric is of the part named, which chose nothing.",
        "",
    ]
    rows = []
    for path in sorted(root.rglob(FILE_NAME)):
        with reading(path, "it must be what npas-fold writes"):
            rows.append(_row(read_json(path), path.parent.relative_to(root)))
    made = f"Made from the `{FILE_NAME}` of each folder by `python scripts/fold_page.py`; never"
    return "\n".join([*lines, *grid(HEAD, rows), "", f"{made} edited.", ""])


def _row(fold: dict[str, Any], folder: Path) -> list[str]:
    threshold, metric = str(fold["threshold"]), fold["metric"]
    if "chosen_on" in fold:
        threshold += f" ({fold['chosen_on']}, tolerance {fold['tolerance']})"
    values = (fold["metrics"][name][metric] for name in ("before", "tied", "folded"))
    return [
        f"[{folder}]({folder}/folded.png){' (unfinished run)' if 'unfinished' in fold else ''}",
        threshold,
        f"{fold['layers_before']} → {fold['layers']}",
        str(fold["weights"]),
        f"{fold['parameters_before']:,} → {fold['parameters']:,}",
        f"{fold['split']} {metric}, %",
        *("no number" if value is None else f"{value:.2f}" for value in values),
    ]
