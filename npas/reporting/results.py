"""Result files: what one run leaves behind, and all that tables and plots are made from.

    result = Result(status="done", exp="digits", ..., **environment())
    write(run_dir, result)                      # run_dir/result.json, atomically
    for path, result in collect("results/runs", "digits").items(): ...

Reading and writing check the same schema. A `ValueError` names the file and the field.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from npas.config import HASH_EXCLUDED, RECIPE_VERSION
from npas.config.renames import modernize_result
from npas.reporting.environment import Git, Hardware, environment
from npas.tasks.common.files import write_whole
from npas.utils.json_data import decode, read_json
from npas.utils.packing import Artifact

__all__ = [
    "FILE_NAME",
    "VARYING",
    "Artifact",
    "BudgetReport",
    "Dataset",
    "Divergence",
    "Git",
    "Hardware",
    "Init",
    "Metrics",
    "Parallel",
    "Result",
    "Search",
    "Split",
    "collect",
    "environment",
    "read",
    "same",
    "write",
]

log = logging.getLogger(__name__)

FILE_NAME = "result.json"
STATUSES = ("done", "diverged", "failed", "preempted")
SOURCES = ("real", "synthetic")
ADDED = (
    *("search", "history", "parallel", "divergence", "init", "published", "files", "earlier"),
    *("hub", "low_rank", "artifact"),
)  # that results from before them lack

VARYING = (
    "wall_s",
    "search.wall_s",
    "peak_memory_bytes",  # of the process that ended the run
    "created_at",
    "hardware",
    "versions",
    "git",
    *(f"config.{key}" for key in sorted(HASH_EXCLUDED)),
)
"""Where two results of one config may differ if one run was killed and resumed, the other was not.

A name stands for all below it: times, memory, the machine, what is installed there, and the keys
that do not decide the result. All else is equal to the bit if `deterministic=true` and machine,
versions and number of processes stay the same.
"""


@dataclass(frozen=True)
class BudgetReport:
    """What was asked for and what it came to, in trainable parameters."""

    asked: str  # canonical, as "0.1" or "18M"; "dense" for a network that shares nothing
    dense: int
    allowed: int
    used: int
    utilization: float  # used / allowed

    @classmethod
    def of_dense(cls, count: int) -> BudgetReport:
        """Give the budget of the dense network itself."""
        return cls("dense", dense=count, allowed=count, used=count, utilization=1.0)


@dataclass(frozen=True)
class Split:
    """Where the used parameters are; the parts add up to `BudgetReport.used`."""

    bank: int
    coefficients: int
    upsamplers: int
    unshared: int
    low_rank: int = 0


@dataclass(frozen=True)
class Metrics:
    """The last epoch's metrics and those of the epoch chosen on held-out data."""

    last: dict[str, float | None]  # None: the number was not finite
    selected: dict[str, float | None] | None = None
    selected_on: str | None = None  # what chose the epoch, as "val accuracy"; never the test set


@dataclass(frozen=True)
class Search:
    """How the run's groups were found, in a training before its own."""

    method: str
    num_groups: int
    epochs: int
    steps: int
    wall_s: float  # on top of the run's


@dataclass(frozen=True)
class Init:
    """What weights `sharing.init` named, by their sha256, and what became of them."""

    weights: str
    became: str


@dataclass(frozen=True)
class Parallel:
    """In how many parts each batch was trained on."""

    ranks: int  # processes, each with its share of the batch
    nodes: int  # machines that they ran on
    grad_accum_steps: int  # parts of a share, one after the other
    # Of a run resumed with other numbers: the earlier ones ("ranks", "grad_accum_steps") and the
    # step up to which they held ("steps").
    earlier: list[dict[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Divergence:
    """Where the numbers went wrong, and how large they were by then."""

    step: int
    norms: dict[str, dict[str, float | None]]
    """By parameter, of its "weight" and its "gradient"; None: not finite, or there is none."""


@dataclass(frozen=True)
class Dataset:
    """The data set, real or synthetic in the same format.

    `published` says whether the files have the published checksums; None where none are known.
    """

    name: str
    source: str
    published: bool | None = None
    files: dict[str, str] | None = None  # what was compared: a checksum or a count of each


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Result:
    """Record one run; `budget` and `split` are None only if it failed before them.

    `metrics` are None only in a run that failed or, where `steps` and `epochs` say how far it has
    come, was preempted.
    """

    status: str
    exp: str
    config: dict[str, Any]
    config_hash: str
    budget: BudgetReport | None
    split: Split | None
    metrics: Metrics | None
    seed: int
    steps: int
    epochs: int
    wall_s: float
    peak_memory_bytes: int | None
    dataset: Dataset
    versions: dict[str, str]
    git: Git
    hardware: Hardware
    created_at: str = field(default_factory=_now)  # ISO 8601, UTC
    recipe_version: int = RECIPE_VERSION
    error: str | None = None  # one line, for a run that did not end well
    search: Search | None = None
    # Columns of what was measured on held-out data after each epoch: "epoch", "val/f1", ...
    history: dict[str, list[Any]] | None = None
    parallel: Parallel | None = None
    divergence: Divergence | None = None  # of a run that diverged
    init: Init | None = None  # of a run that started from trained weights
    # "name@commit" by key, of what came from the Hugging Face hub
    hub: dict[str, str] | None = None
    artifact: Artifact | None = None  # of a run that exported one

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, checked against the schema."""
        data = dataclasses.asdict(self)
        if self.status != "done" and self.metrics is not None:
            for kind in ("last", "selected"):
                data["metrics"][kind] = _finite_or_none(data["metrics"][kind])
        for name, column in (self.history or {}).items():
            data["history"][name] = [v if v is None or math.isfinite(v) else None for v in column]
        for name, norms in self.divergence.norms.items() if self.divergence else ():
            data["divergence"]["norms"][name] = _finite_or_none(norms)
        return dataclasses.asdict(from_dict(data))


def from_dict(data: object) -> Result:
    """Build a result from JSON data; a `ValueError` names the field that is wrong."""
    result: Result = decode(Result, modernize_result(data), optional=ADDED)
    for problem in _problems(result):
        raise ValueError(problem)
    return result


def write(run_dir: str | Path, result: Result) -> Path:
    """Write `run_dir/result.json` so that a reader sees the old file or the whole new one."""
    path = Path(run_dir) / FILE_NAME
    try:
        text = json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path


def read(path: str | Path) -> Result:
    """Read a result file, or the one in a run folder; a `ValueError` names file and field."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        return from_dict(read_json(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such result file") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def collect(root: str | Path, exp: str | None = None) -> dict[Path, Result]:
    """Read every `root/<exp>/<folder>/result.json`, of one experiment or of all, sorted by path.

    Files that cannot be read are left out, each with a warning that names it.
    """
    found = {}
    for path in sorted(Path(root).glob(f"{exp or '*'}/*/{FILE_NAME}")):
        try:
            found[path] = read(path)
        except ValueError as error:
            log.warning("left out: %s", " ".join(str(error).split()))
    return found


def same(one: Result, other: Result) -> list[str]:
    """Return the fields in which two results differ beside those that may: see `VARYING`."""
    ours, theirs = (dict(_leaves(result.to_dict(), "")) for result in (one, other))
    missing = object()
    return [
        path
        for path in sorted({*ours, *theirs})
        if ours.get(path, missing) != theirs.get(path, missing)
        and not any(path == field or path.startswith(f"{field}.") for field in VARYING)
    ]


def _leaves(node: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the full names and values of what is in a node, or the node itself if it is none."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, node


def _finite_or_none(metrics: dict[str, float | None] | None) -> dict[str, float | None] | None:
    if metrics is None:
        return None
    return {k: v if v is not None and math.isfinite(v) else None for k, v in metrics.items()}


def _problems(result: Result) -> Iterator[str]:
    """Yield what must hold between or beyond single fields and does not."""
    if result.status not in STATUSES:
        yield f"status must be one of {', '.join(STATUSES)}, not {result.status!r}"
    if result.dataset.source not in SOURCES:
        yield f"dataset.source must be {' or '.join(SOURCES)}, not {result.dataset.source!r}"
    if result.dataset.source != "real" and result.dataset.published is not None:
        yield "dataset.published must be null where dataset.source is not real"
    for name in ("exp", "config_hash"):
        if not getattr(result, name):
            yield f"{name} must not be empty"
    for name in ("steps", "epochs", "wall_s", "peak_memory_bytes"):
        if (getattr(result, name) or 0) < 0:
            yield f"{name} must not be negative, not {getattr(result, name)}"
    if not _is_time(result.created_at):
        yield f"created_at must be an ISO 8601 time with its zone, not {result.created_at!r}"
    for name in ("budget", "split"):
        if getattr(result, name) is None and result.status != "failed":
            yield f"{name} may be null only in a failed run"
    if result.metrics is None and result.status not in ("failed", "preempted"):
        yield "metrics may be null only in a failed or preempted run"
    if result.budget is not None:
        yield from _budget_problems(result.budget, result.split, _promises_exactness(result))
    if result.metrics is not None:
        yield from _metrics_problems(result.metrics, done=result.status == "done")
    if result.history is not None:
        yield from _history_problems(result.history)
    if result.parallel is not None:
        for name, count in dataclasses.asdict(result.parallel).items():
            if name != "earlier" and count < 1:
                yield f"parallel.{name} must be at least 1, not {count}"
    if result.divergence is not None:
        yield from _divergence_problems(result.divergence, result.status)


def _promises_exactness(result: Result) -> bool:
    """Return whether the layout keeps to the budget: the released one limits its banks alone."""
    sharing = result.config.get("sharing")
    return not isinstance(sharing, Mapping) or sharing.get("allocator") != "reference"


def _budget_problems(budget: BudgetReport, split: Split | None, exact: bool) -> Iterator[str]:
    if budget.used <= 0 or (exact and budget.used > budget.allowed):
        yield f"budget.used must be within budget.allowed ({budget.allowed}), not {budget.used}"
    elif not math.isclose(budget.utilization, budget.used / budget.allowed, abs_tol=1e-6):
        yield f"budget.utilization must be used / allowed, not {budget.utilization}"
    if budget.asked == "dense" and budget.used != budget.dense:
        yield f"budget.used must be budget.dense ({budget.dense}) where 'dense' was asked"
    if split is not None and sum(dataclasses.astuple(split)) != budget.used:
        yield f"split must add up to budget.used ({budget.used})"


def _metrics_problems(metrics: Metrics, done: bool) -> Iterator[str]:
    if (metrics.selected is None) != (metrics.selected_on is None):
        yield "metrics.selected and metrics.selected_on must both be given or both be null"
    if not done:
        return
    if not metrics.last:
        yield "metrics.last must not be empty in a run that is done"
    for kind, values in (("last", metrics.last), ("selected", metrics.selected or {})):
        for name, value in values.items():
            if value is None:
                yield f"metrics.{kind}.{name} may be null only in a run that is not done"


def _history_problems(history: Mapping[str, list[Any]]) -> Iterator[str]:
    """Yield what is wrong with the columns; a number that was not finite is None in them."""
    epochs = history.get("epoch", [])
    counted = all(type(epoch) is int for epoch in epochs)
    if not counted or any(a >= b for a, b in zip([0, *epochs], epochs, strict=False)):
        yield f"history.epoch must be epochs from 1 on that increase, not {epochs!r:.60}"
    for name, column in history.items():
        if len(column) != len(epochs):
            yield f"history.{name} must have a value for each of history.epoch ({len(epochs)})"
        for value in column:
            if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
                yield f"history.{name} must hold finite numbers and null, not {value!r:.60}"


def _divergence_problems(divergence: Divergence, status: str) -> Iterator[str]:
    if status != "diverged":
        yield "divergence may be given only in a diverged run"
    if divergence.step < 0:
        yield f"divergence.step must not be negative, not {divergence.step}"
    for name, norms in divergence.norms.items():
        if set(norms) != {"weight", "gradient"}:
            yield f"divergence.norms.{name} must have weight and gradient, not {sorted(norms)}"


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
