"""List, filter and sort runs by their folders and result files, without torch and Hydra."""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from npas.config import CONFIG_FILE, LOG_FILE, RESULT_FILE, canonical_budget, flat, read_config
from npas.reporting import results
from npas.reporting.results import Result
from npas.utils.checks import near
from npas.utils.git import PACKAGE_FOLDER
from npas.utils.json_data import read_log
from npas.utils.printing import figure

UNFINISHED = "unfinished"  # without a result: in training, or killed
COLUMNS = ("exp", "budget", "seed", "status", "metric", "value", "used", "seconds", "folder")
_FOLDER = re.compile(r"(budget-)?(?P<budget>.+)_seed-(?P<seed>\d+)_(?P<hash>[0-9a-f]{8})")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run, with its result if it has ended."""

    folder: str
    exp: str
    budget: str
    seed: int | None
    status: str
    result: Result | None = None

    @property
    def last(self) -> Mapping[str, float | None]:
        """Return the metrics of the last epoch, the main one first."""
        return self.result.metrics.last if self.result and self.result.metrics else {}

    @property
    def metric(self) -> str | None:
        return next(iter(self.last), None)

    @property
    def value(self) -> float | None:
        return next(iter(self.last.values()), None)

    @property
    def used(self) -> int | None:
        """Return the number of trainable parameters."""
        return self.result.budget.used if self.result and self.result.budget else None

    @property
    def seconds(self) -> float | None:
        return self.result.wall_s if self.result else None

    def cells(self) -> dict[str, str]:
        """Return the columns as texts, with units; "" for what is not known."""
        shown = {column: getattr(self, column) for column in COLUMNS}
        shown["value"] = None if self.metric is None else figure(self.metric, self.value)
        for column in ("used", "seconds"):
            if shown[column] is not None:
                shown[column] = f"{shown[column]:,.0f}"
        return {column: "" if cell is None else str(cell) for column, cell in shown.items()}

    def config(self) -> dict[str, Any]:
        """Return the config by full key names. Raises ValueError if it cannot be read."""
        if self.result is not None:
            return flat(self.result.config)
        return flat(read_config(Path(self.folder, CONFIG_FILE)))


def results_root() -> Path:
    """Return the folder of the committed results: the checkout's, else ./results."""
    checkout = PACKAGE_FOLDER.parent / "results"
    return checkout if (checkout / "runs").is_dir() else Path("results")


def collect(root: Path) -> list[Run]:
    """Return the runs in `root/EXP/FOLDER`, sorted by path.

    Folders with other names than npas gives to runs are ignored. Raises ValueError if there is no
    folder `root`.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder root={root}: name a folder of runs")
    files = [path for name in (RESULT_FILE, CONFIG_FILE) for path in root.glob(f"*/*/{name}")]
    found = {path.parent for path in files if _FOLDER.fullmatch(path.parent.name)}
    return [read(folder) for folder in sorted(found)]


def read(folder: Path) -> Run:
    """Return a folder's run: "damaged" if its result is unreadable or copied from another run."""
    named = _FOLDER.fullmatch(folder.name)
    budget, seed = (named["budget"], int(named["seed"])) if named else ("", None)
    unfinished = Run(str(folder), folder.parent.name, budget, seed, UNFINISHED)
    if not (folder / RESULT_FILE).exists():
        return unfinished
    try:
        result = results.read(folder)
    except ValueError:
        return replace(unfinished, status="damaged")
    if named and not result.config_hash.startswith(named["hash"]):
        return replace(unfinished, status="damaged")
    asked = result.config.get("budget")
    budget = budget if asked is None else str(asked)
    return Run(str(folder), result.exp, budget, result.seed, result.status, result)


def check_keys(runs: Sequence[Run], wanted: Iterable[str]) -> None:
    """Raise ValueError, with a suggestion, for a key that none of the runs has."""
    left, known = set(wanted) - set(COLUMNS), {*COLUMNS}
    for run in runs:
        if not left:
            return
        with contextlib.suppress(ValueError):
            known |= run.config().keys()
        left -= known
    if runs and left:
        key = min(left)
        raise ValueError(f"no run has a key {key!r}; {near(key, sorted(known))}")


def select(runs: Iterable[Run], wanted: Mapping[str, str]) -> list[Run]:
    """Return the runs whose columns and config keys have the wanted values.

    A wanted value is one or more texts, separated by commas, with wildcards `*` and `?`; numbers
    are compared as numbers. A run whose config cannot be read has no keys.
    """
    columns = {key: text for key, text in wanted.items() if key in COLUMNS}
    if "budget" in columns:
        budgets = columns["budget"].split(",")
        for i, text in enumerate(budgets):  # as runs store it; "dense" or "0.*" stay as they are
            with contextlib.suppress(ValueError):
                budgets[i] = canonical_budget(text)
        columns["budget"] = ",".join(budgets)
    others = {key: text for key, text in wanted.items() if key not in columns}
    found = []
    for run in runs:
        if all(_fits_any(getattr(run, key), text) for key, text in columns.items()):
            config = {}
            try:
                config = run.config() if others else {}
            except ValueError as error:
                log.warning("its keys are unknown: %s", error)
            if all(_fits_any(config.get(key), text) for key, text in others.items()):
                found.append(run)
    return found


def _fits_any(value: object, wanted: str) -> bool:
    if isinstance(value, list):  # in the form of a command line
        value = f"[{','.join(map(str, value))}]"
    return _fits(value, wanted) or any(_fits(value, one) for one in wanted.split(","))


def _fits(value: object, wanted: str) -> bool:
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    try:
        return float(text) == float(wanted)
    except ValueError:
        return text == wanted or fnmatchcase(text, wanted)


def order(runs: Iterable[Run], column: str) -> list[Run]:
    """Sort by a column, in descending order with a leading `-`; runs without a value come last."""
    name = column.removeprefix("-")
    if name not in COLUMNS:
        names = ", ".join(COLUMNS)
        raise ValueError(f"sort={column}: sort by one of {names} (as -value: the largest first)")
    runs = list(runs)
    having = [run for run in runs if getattr(run, name) not in (None, "")]
    having.sort(key=lambda run: _sortable(getattr(run, name)), reverse=column.startswith("-"))
    return having + [run for run in runs if run not in having]


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Return a sort key that puts numbers, also those in texts, before other texts."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, str(value)


def curves(run: Run) -> dict[str, dict[int, float]]:
    """Return the run's logged losses and metrics by name and step.

    Without a log, as for committed results, return the result's history by epoch. Damaged lines are
    skipped.
    """
    found: dict[str, dict[int, float]] = {}
    for record in read_log(Path(run.folder, LOG_FILE)):
        for name, value in record.items():
            if name.startswith(("train/", "val/", "test/")) and isinstance(value, (int, float)):
                found.setdefault(name, {})[record["step"]] = value
    if not found and run.result and (history := run.result.history):
        epochs = history.get("epoch", [])
        for name, column in history.items():
            if name != "epoch":
                pairs = zip(epochs, column, strict=False)
                found[name] = {epoch: value for epoch, value in pairs if value is not None}
    return found
