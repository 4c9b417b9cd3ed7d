"""Result files of runs, from which tables and plots are made.

    result = Result(status="done", exp="digits", ..., **environment())
    write(run_dir, result)                      # run_dir/result.json, atomically
    for path, result in collect("results/runs", "digits").items(): ...

Reading and writing check the same schema. A `ValueError` names the file and the field.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from npas.config import HASH_EXCLUDED, RECIPE_VERSION, RESULT_FILE, flat
from npas.config.renames import modernize_result
from npas.reporting.environment import Hardware
from npas.utils.budget import BudgetReport, PruningReport
from npas.utils.files import write_whole
from npas.utils.git import Git
from npas.utils.json_data import decode, finite, read_json
from npas.utils.packing import Artifact

log = logging.getLogger(__name__)

STATUSES = ("done", "diverged", "failed", "preempted")
SOURCES = ("real", "synthetic")
# Fields that older results lack.
ADDED = (
    "search", "history", "parallel", "divergence", "init", "published", "files", "earlier", "hub",
    "low_rank", "indices", "artifact", "pruning", "earlier_code",
)  # fmt: skip
# Fields in which results of one config may differ if one run was killed and resumed: times, memory,
# the machine, versions, and keys that do not affect the result. A name includes all below it. Other
# fields are identical if `deterministic=true` and machine, versions and ranks are the same.
VARYING = (
    "wall_s",
    "search.wall_s",
    "peak_memory_bytes",  # of the process that ended the run
    "created_at",
    "hardware",
    "versions",
    "git",
    "earlier_code",
    *(f"config.{key}" for key in sorted(HASH_EXCLUDED)),
)
Metric = float | None  # most are in %; None: not finite


@dataclass(frozen=True)
class Split:
    """The used parameters by kind, which add up to `BudgetReport.used`."""

    bank: int
    coefficients: int
    upsamplers: int
    unshared: int
    low_rank: int = 0
    indices: int = 0


@dataclass(frozen=True)
class Metrics:
    """The last epoch's metrics and those of the epoch chosen on held-out data."""

    last: dict[str, Metric]
    selected: dict[str, Metric] | None = None
    selected_on: str | None = None  # the metric that chose the epoch, as "val accuracy"


@dataclass(frozen=True)
class Search:
    """The search for the run's groups."""

    method: str
    num_groups: int
    epochs: int
    steps: int
    wall_s: float  # not included in the run's


@dataclass(frozen=True)
class Init:
    """The sha256 of the network with the weights of `sharing.init`, and what was done with them."""

    weights: str
    became: str


@dataclass(frozen=True)
class Parallel:
    """The number of parts of each batch."""

    ranks: int  # processes, each with a share of the batch
    nodes: int  # machines
    grad_accum_steps: int  # parts of each share
    # Earlier values of a run resumed with others ("ranks", "grad_accum_steps"), and the step up to
    # which they held ("steps").
    earlier: list[dict[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Divergence:
    """The step of a divergence, and the norms of all parameters."""

    step: int
    norms: dict[str, dict[str, Metric]]  # by parameter, of its "weight" and its "gradient"


@dataclass(frozen=True)
class Dataset:
    """A dataset, real or synthetic."""

    name: str
    source: str
    published: bool | None = None  # whether checksums are the published ones; None: not known
    files: dict[str, str] | None = None  # the checksum or count of each file


@dataclass(frozen=True)
class Result:
    """One run. `budget`, `split` and `metrics` may be None if it failed, `metrics` if preempted."""

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
    created_at: str = field(  # ISO 8601
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    recipe_version: int = RECIPE_VERSION
    error: str | None = None  # one line, of a run that is not done
    search: Search | None = None
    # Metrics on held-out data after each epoch, in columns: "epoch", "val/f1", ...
    history: dict[str, list[Any]] | None = None
    parallel: Parallel | None = None
    # Of a run that other commits began: "commit", "dirty", and the step up to which ("steps").
    earlier_code: list[dict[str, Any]] | None = None
    divergence: Divergence | None = None  # of a run that diverged
    init: Init | None = None  # of a run that started from trained weights
    hub: dict[str, str] | None = None  # "name@commit" by key, of files of the Hugging Face hub
    artifact: Artifact | None = None  # of a run that exported one
    pruning: PruningReport | None = None  # of a run that prunes filters

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, checked against the schema."""
        data = dataclasses.asdict(self)
        for key in ("history", "divergence", *(["metrics"] if self.status != "done" else [])):
            data[key] = finite(data[key])
        return dataclasses.asdict(from_dict(data))


def from_dict(data: object) -> Result:
    """Build a result from JSON data. Raises ValueError that names the invalid field."""
    result: Result = decode(Result, modernize_result(data), optional=ADDED)
    for holds, message in _rules(result):
        if not holds:
            raise ValueError(message)
    return result


def write(run_dir: str | Path, result: Result) -> Path:
    """Write `run_dir/result.json` atomically."""
    path = Path(run_dir) / RESULT_FILE
    try:
        text = json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path


def read(path: str | Path) -> Result:
    """Read a result file, or that of a run folder. Raises ValueError that names file and field."""
    path = Path(path)
    path = path / RESULT_FILE if path.is_dir() else path
    try:
        return from_dict(read_json(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def collect(root: str | Path, exp: str = "*") -> dict[Path, Result]:
    """Read all `root/<exp>/<folder>/result.json` by path; skip invalid ones with a warning."""
    found = {}
    for path in sorted(Path(root).glob(f"{exp}/*/{RESULT_FILE}")):
        try:
            found[path] = read(path)
        except ValueError as error:
            log.warning("left out: %s", " ".join(str(error).split()))
    return found


def same(one: Result, other: Result) -> list[str]:
    """Return the fields, except `VARYING`, in which two results differ."""
    ours, theirs = (flat(result.to_dict()) for result in (one, other))
    missing = object()
    return [
        path
        for path in sorted({*ours, *theirs})
        if ours.get(path, missing) != theirs.get(path, missing)
        and not any(path == field or path.startswith(f"{field}.") for field in VARYING)
    ]


def _rules(r: Result) -> Iterator[tuple[bool, str]]:
    """Yield rules for the values of fields: whether each holds, and its error message."""
    yield r.status in STATUSES, f"status must be one of {', '.join(STATUSES)}, not {r.status!r}"
    source = r.dataset.source
    yield source in SOURCES, f"dataset.source must be {' or '.join(SOURCES)}, not {source!r}"
    if (budget := r.budget) is None or r.split is None:
        yield r.status == "failed", "budget and split may be null only in a failed run"
    else:
        # The released layout limits only its banks.
        released = (r.config.get("sharing") or {}).get("allocator") == "reference"
        within = budget.used > 0 and (budget.used <= budget.allowed or released)
        yield within, f"budget.used must be within budget.allowed ({budget.allowed})"
        adds_up = sum(dataclasses.astuple(r.split)) == budget.used
        yield adds_up, f"split must add up to budget.used ({budget.used})"
    if r.status == "done":
        last = {} if r.metrics is None else {**r.metrics.last, **(r.metrics.selected or {})}
        whole = bool(last) and None not in last.values()
        yield whole, "metrics must have numbers in a run that is done"
