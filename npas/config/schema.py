"""The typed, closed schema of a run's configuration: dataclasses that check their own values.

A value out of range is a `ValueError` of one line that names the key and what to change. Imports
neither torch nor a task or model family: the families' own keys are their `Config` classes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from npas.config.optim import OptimConfig
from npas.config.sharing import LONGEST, SharingConfig
from npas.utils.budget import parse_budget
from npas.utils.checks import above, at_least, at_most, below
from npas.utils.packing import Packing

# Raised by one when a fix changes what an unchanged config trains to, since results from before it
# cannot stand beside results from after it. It is a key of every stored config and part of every
# hash.
RECIPE_VERSION = 1

NO_PACKAGE = "its first line must be '# @package _global_', so that its keys stand at the top"

SYNTHETIC = "synthetic"  # the source of data that are synthetic
DENSE = "dense"  # the budget that trains the dense network and shares nothing


MOST_PRUNINGS = 1000  # of one run, and batches that each looks at
MOST_PROCESSES = 1024  # of one machine: more is a typing error


@dataclass(frozen=True)
class SyntheticConfig:
    """How large a run on synthetic data is: samples, and at most how long it trains."""

    train: int = 8
    test: int = 4
    epochs: int = 1
    batch_size: int = 2

    def __post_init__(self) -> None:
        for key in ("train", "test", "epochs", "batch_size"):
            at_least(f"data.synthetic.{key}", getattr(self, key), 1)
            at_most(f"data.synthetic.{key}", getattr(self, key), LONGEST)


@dataclass(frozen=True)
class DataConfig:
    """Where the data lie and how much of them to train on; the task says what a split is.

    `source=synthetic` runs the experiment on data that are synthetic in the real set's format.
    Data that differ from the published checksums or counts, where these are known, are refused;
    `verify=warn` reads them with a warning, and their results are not compared with published ones.
    `workers` processes prepare the batches; 0: the training process does.
    """

    root: str = "data"
    source: Literal["real", "synthetic"] = "real"
    val_fraction: float | None = None
    download: bool = True
    verify: Literal["refuse", "warn"] = "refuse"
    workers: int = 0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.val_fraction is not None:
            at_least("data.val_fraction", self.val_fraction, 0)
            below("data.val_fraction", self.val_fraction, 1)
        at_least("data.workers", self.workers, 0)
        at_most("data.workers", self.workers, MOST_PROCESSES)


@dataclass(frozen=True)
class DistillConfig:
    """A teacher whose outputs are to be matched: a run's folder, or "dense"; null: none.

    The loss is (1 - weight) x the task's + weight x temperature^2 KL (Hinton et al. 2015), and
    `hidden_weight` times the mean squared difference of the outputs of the modules that the
    patterns `hidden` name. `cache` is a folder that keeps the teacher's logits.
    """

    teacher: str | None = None
    weight: float = 0.9
    temperature: float = 4.0
    hidden: list[str] = field(default_factory=list)
    hidden_weight: float = 1.0
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None and not self.teacher.strip():
            raise ValueError("distill.teacher must not be empty: name a run, dense, or null")
        at_least("distill.weight", self.weight, 0)
        at_most("distill.weight", self.weight, 1)
        above("distill.temperature", self.temperature, 0)
        at_least("distill.hidden_weight", self.hidden_weight, 0)
        if self.cache is not None and not self.cache.strip():
            raise ValueError("distill.cache must not be empty: name a folder, or null")
        if self.cache is not None and self.hidden:
            raise ValueError("distill.cache keeps logits alone: set distill.hidden=[], or no cache")


@dataclass(frozen=True)
class PruningConfig:
    """Which filters are pruned, by what `method` (null: none), how many of them, and when.

    `amount` is the share of each prunable layer's filters, or one by pattern of the layers' names,
    the first that matches; other layers stay whole. `start` and `end` are parts of the run's steps.
    one_shot prunes at `start`; gradual prunes `times` times up to `end`, after time i of n
    1 - (1 - i/n)^3 of the amount (Zhu & Gupta 2017, eq. 1). hrank ranks on `batches` batches.
    """

    method: Literal["magnitude", "hrank"] | None = None
    amount: float | dict[str, float] = 0.5
    schedule: Literal["one_shot", "gradual"] = "one_shot"
    start: float = 0.5
    end: float = 0.75
    times: int = 10
    batches: int = 5

    def __post_init__(self) -> None:
        amounts = self.amount if isinstance(self.amount, dict) else {"": self.amount}
        for pattern, amount in amounts.items():
            key = f"pruning.amount.{pattern}" if pattern else "pruning.amount"
            at_least(key, amount, 0)
            below(key, amount, 1)
        for key in ("start", "end"):
            at_least(f"pruning.{key}", getattr(self, key), 0)
            below(f"pruning.{key}", getattr(self, key), 1)
        if self.schedule == "gradual":
            at_least("pruning.end", self.end, self.start)
        for key in ("times", "batches"):
            at_least(f"pruning.{key}", getattr(self, key), 1)
            at_most(f"pruning.{key}", getattr(self, key), MOST_PRUNINGS)


@dataclass(frozen=True)
class TrainerConfig:
    """On what to train, when to log and save.

    `devices` processes share each batch; each takes its share in `grad_accum_steps` parts. Both
    change the result. Under torchrun or srun npas-train sets `devices` to the number of processes.
    Gradients travel between them as `gradient_dtype`. With `tf32` GPUs round the factors of fp32
    convolutions and matrix products to TF32. A checkpoint is written after each epoch and,
    if `checkpoint_every` is not 0, after every so many steps; the `keep_last` newest are kept.
    `max_seconds` ends the training by the clock, and the schedule runs by it where it is faster
    than the steps; such a run cannot be repeated to the bit.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    grad_accum_steps: int = 1
    gradient_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    checkpoint_every: int = 0
    max_seconds: float | None = None
    keep_last: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for key in ("devices", "grad_accum_steps", "keep_last", "log_every"):
            at_least(f"trainer.{key}", getattr(self, key), 1)
        at_most("trainer.devices", self.devices, MOST_PROCESSES)
        at_least("trainer.checkpoint_every", self.checkpoint_every, 0)
        if self.max_seconds is not None:
            above("trainer.max_seconds", self.max_seconds, 0)


@dataclass(frozen=True)
class ArtifactConfig(Packing):
    """Whether a run exports an artifact at its end; one with a budget in bytes always does."""

    export: bool = False


@dataclass(frozen=True)
class WandbConfig:
    """Whether and under which names Weights & Biases tracks the run."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "npas"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    artifacts: bool = False


@dataclass(frozen=True)
class Config:
    """One run's whole configuration; `model` and `task` are their families' own `Config`."""

    exp: str = "digits"
    budget: str | None = None
    seed: int = 0
    epochs: int = 200
    batch_size: int = 128
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    deterministic: bool = False
    resume: str = "auto"
    force: bool = False
    run_root: str = "runs"
    verbose: bool = False
    dry_run: bool = False
    recipe_version: int = RECIPE_VERSION
    # Beside log.jsonl, which is always written.
    trackers: list[Literal["wandb", "tensorboard", "csv"]] = field(
        default_factory=lambda: ["wandb"]
    )
    model: Any = field(default_factory=dict)
    task: Any = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    sharing: SharingConfig = field(default_factory=SharingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    artifact: ArtifactConfig = field(default_factory=ArtifactConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", self.exp):
            raise ValueError(
                f"exp must be a folder name of letters, digits, '_', '-' and '.', got {self.exp!r}"
            )
        for key in ("run_root", "resume"):
            if not getattr(self, key).strip():
                raise ValueError(f"{key} must not be empty")
        at_least("seed", self.seed, 0)
        below("seed", self.seed, 2**32)
        for key in ("epochs", "batch_size"):
            at_least(key, getattr(self, key), 1)
            at_most(key, getattr(self, key), LONGEST)
        for key in ("model", "task"):
            node = getattr(self, key)
            if isinstance(node, Mapping) and not isinstance(node.get("family"), str):
                raise ValueError(f"{key}.family is missing: choose a {key}, as {key}=NAME")
        if self.recipe_version != RECIPE_VERSION:
            raise ValueError(
                f"recipe_version must be {RECIPE_VERSION}, got {self.recipe_version}: this npas "
                f"trains recipe {RECIPE_VERSION} only"
            )
        templates = self.sharing.templates
        if self.budget is None and templates is None:
            raise ValueError("budget is missing: set budget=0.1, budget=dense or sharing.templates")
        if self.budget is not None and templates is not None:
            raise ValueError(
                f"budget={self.budget} and sharing.templates={templates} exclude each other: set "
                "budget=null or sharing.templates=null"
            )
        if self.budget not in (None, DENSE):
            canonical_budget(self.budget)
        if self.data.source == SYNTHETIC:
            self._shorten()

    @property
    def cap(self) -> int | None:
        """Return the bytes that the run's artifact may take; None without a budget in bytes."""
        return None if self.budget in (None, DENSE) else parse_budget(str(self.budget)).size

    @property
    def exports(self) -> bool:
        """Return whether the run ends with an artifact."""
        return self.artifact.export or self.cap is not None

    def _shorten(self) -> None:
        """Limit a run on synthetic data to what `data.synthetic` says, without milestones."""
        most = self.data.synthetic
        shorter: dict[str, Any] = {
            "epochs": min(self.epochs, most.epochs),
            "batch_size": min(self.batch_size, most.batch_size),
            "optim": dataclasses.replace(self.optim, milestones=[]),
        }
        if search := self.sharing.search.epochs:
            epochs = dataclasses.replace(self.sharing.search, epochs=min(search, most.epochs))
            shorter["sharing"] = dataclasses.replace(self.sharing, search=epochs)
        for key, value in shorter.items():
            object.__setattr__(self, key, value)


def canonical_budget(text: str) -> str:
    """Return the one text that equal budgets share; ValueError if it is no budget.

    A quotient is none here: the text names the run's folder.
    """
    try:
        found = parse_budget(text).canonical
    except ValueError as error:
        hint = f", or {DENSE}" if "is not a budget" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
    if "/" in found:
        raise ValueError(f"budget={text} has no end as a decimal: write some digits of it, as 0.33")
    return found


def settings(node: Any, start: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key's full name, value and default (None where it has none)."""
    for entry in dataclasses.fields(node):
        value = getattr(node, entry.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{start}{entry.name}.")
            continue
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        yield f"{start}{entry.name}", value, None if default is dataclasses.MISSING else default
