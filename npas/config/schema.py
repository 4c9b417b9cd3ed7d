"""The schema of a run's config: dataclasses that check their own values.

A value out of range raises a ValueError that names the key and what to change. Neither torch nor
task or model families are imported: their keys are in the families' own `Config` classes.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from npas.config.optim import OptimConfig
from npas.config.sharing import DENSE, LONGEST, SharingConfig
from npas.utils.budget import parse_budget
from npas.utils.checks import Ranged, within
from npas.utils.packing import Packing

# Raise it when a fix changes the results of an unchanged config: results before and after cannot be
# compared. It is a key of every stored config and part of every hash.
RECIPE_VERSION = 1

NO_PACKAGE = "its first line must be '# @package _global_', so that its keys are at the top"

SYNTHETIC = "synthetic"  # a value of data.source

MOST_PRUNINGS = 1000  # of one run, and batches per pruning
MOST_PROCESSES = 1024  # of one machine: more is a typing error


@dataclass(frozen=True)
class SyntheticConfig(Ranged, section="data.synthetic."):
    """Samples of a synthetic dataset, and the most epochs and batch size of a run on it."""

    train: Annotated[int, f"[1, {LONGEST}]"] = 8
    test: Annotated[int, f"[1, {LONGEST}]"] = 4
    epochs: Annotated[int, f"[1, {LONGEST}]"] = 1
    batch_size: Annotated[int, f"[1, {LONGEST}]"] = 2


@dataclass(frozen=True)
class DataConfig(Ranged, section="data."):
    """The dataset's directory, source and validation split.

    `source=synthetic` runs the experiment on synthetic data in the real dataset's format. Data that
    differ from the published checksums or counts, if known, are refused; `verify=warn` reads them
    with a warning, and their results are not compared with published ones. `workers` processes
    prepare the batches; 0: the training process does.
    """

    root: str = "data"
    source: Literal["real", "synthetic"] = "real"
    val_fraction: Annotated[float | None, "[0, 1)"] = None
    download: bool = True
    verify: Literal["refuse", "warn"] = "refuse"
    workers: Annotated[int, f"[0, {MOST_PROCESSES}]"] = 0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class DistillConfig(Ranged, section="distill."):
    """Distillation from a teacher: a run's folder, or "dense"; null: none.

    The loss is (1 - weight) x the task's + weight x temperature^2 KL (Hinton et al. 2015), plus
    `hidden_weight` times the mean squared difference of the outputs of the modules that match the
    patterns `hidden`. `cache` is a folder that keeps the teacher's logits.
    """

    teacher: str | None = None
    weight: Annotated[float, "[0, 1]"] = 0.9
    temperature: Annotated[float, "(0, inf)"] = 4.0
    hidden: list[str] = field(default_factory=list)
    hidden_weight: Annotated[float, "[0, inf)"] = 1.0
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("teacher", "cache"):
            if (path := getattr(self, key)) is not None and not path.strip():
                raise ValueError(f"distill.{key} must not be empty: set a path, or null")
        if self.cache is not None and self.hidden:
            raise ValueError("distill.cache keeps only logits: set distill.hidden=[], or no cache")


@dataclass(frozen=True)
class PruningConfig(Ranged, section="pruning."):
    """Filter pruning by `method`; null: none.

    `amount` is the fraction of each prunable layer's filters to prune, or maps patterns of layer
    names to fractions: the first match counts, and layers without one are not pruned. `start` and
    `end` are fractions of the run's steps. one_shot prunes at `start`; gradual prunes `times` times
    up to `end`, with 1 - (1 - i/n)^3 of the amount pruned after time i of n (Zhu & Gupta 2017,
    eq. 1). hrank ranks feature maps of `batches` batches.
    """

    method: Literal["magnitude", "hrank"] | None = None
    amount: float | dict[str, float] = 0.5
    schedule: Literal["one_shot", "gradual"] = "one_shot"
    start: Annotated[float, "[0, 1)"] = 0.5
    end: float = 0.75
    times: Annotated[int, f"[1, {MOST_PRUNINGS}]"] = 10
    batches: Annotated[int, f"[1, {MOST_PRUNINGS}]"] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        amounts = self.amount if isinstance(self.amount, dict) else {"": self.amount}
        for pattern, amount in amounts.items():
            within(f"pruning.amount.{pattern}" if pattern else "pruning.amount", amount, "[0, 1)")
        first = self.start if self.schedule == "gradual" else 0
        within("pruning.end", self.end, f"[{first}, 1)")


@dataclass(frozen=True)
class TrainerConfig(Ranged, section="trainer."):
    """Devices, gradient accumulation, checkpoints and logging.

    `devices` processes share each batch, and each splits its share into `grad_accum_steps` parts.
    Both change the result. Under torchrun or srun, npas-train sets `devices` to the number of
    processes. They exchange gradients in `gradient_dtype`. With `tf32`, GPUs round the factors of
    fp32 convolutions and matrix products to TF32. A checkpoint is written after each epoch and, if
    not 0, every `checkpoint_every` steps; the `keep_last` newest are kept. `max_seconds` limits the
    training time: the schedule then follows the time if that is ahead of the steps, and the run
    cannot be repeated to the bit.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Annotated[int, f"[1, {MOST_PROCESSES}]"] = 1
    grad_accum_steps: Annotated[int, "[1, inf)"] = 1
    gradient_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    checkpoint_every: Annotated[int, "[0, inf)"] = 0
    max_seconds: Annotated[float | None, "(0, inf)"] = None
    keep_last: Annotated[int, "[1, inf)"] = 2
    log_every: Annotated[int, "[1, inf)"] = 10


@dataclass(frozen=True)
class ArtifactConfig(Packing, section="artifact."):
    """With `export`, or a budget in bytes, a run exports an artifact at its end."""

    export: bool = False


@dataclass(frozen=True)
class WandbConfig:
    """Tracking by Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "npas"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    artifacts: bool = False


@dataclass(frozen=True)
class Config(Ranged):
    """One run's config; `model` and `task` are the `Config` classes of their families.

    With `eval_only` the network is evaluated as `sharing.init` starts it, without training.
    """

    exp: str = "digits"
    budget: str | None = None
    seed: Annotated[int, "[0, 4294967296)"] = 0
    epochs: Annotated[int, f"[1, {LONGEST}]"] = 200
    batch_size: Annotated[int, f"[1, {LONGEST}]"] = 128
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    deterministic: bool = False
    resume: str = "auto"
    force: bool = False
    run_root: str = "runs"
    verbose: bool = False
    dry_run: bool = False
    eval_only: bool = False
    recipe_version: int = RECIPE_VERSION
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
        super().__post_init__()
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
        if self.eval_only:
            self._check_eval_only()
        if self.data.source == SYNTHETIC:
            self._shorten()

    @property
    def trained_epochs(self) -> int:
        """Return the epochs that are trained: none with `eval_only`."""
        return 0 if self.eval_only else self.epochs

    def as_dense(self) -> "Config":
        """Return the config of the experiment's own run with budget=dense, all else equal."""
        sharing = dataclasses.replace(
            self.sharing, groups="single", num_groups=None, templates=None, init=None
        )
        return dataclasses.replace(
            self, budget=DENSE, sharing=sharing, distill=DistillConfig(), pruning=PruningConfig(),
            eval_only=False,
        )  # fmt: skip

    def _check_eval_only(self) -> None:
        if self.sharing.init is None:
            raise ValueError("eval_only=true evaluates trained weights: set sharing.init")
        if self.pruning.method is not None:
            raise ValueError("eval_only=true takes no step that prunes: set pruning.method=null")
        if self.dry_run:
            raise ValueError("eval_only=true takes no step, and dry_run=true one: leave one out")

    @property
    def cap(self) -> int | None:
        """Return the most bytes of the run's artifact; None without a budget in bytes."""
        return None if self.budget in (None, DENSE) else parse_budget(str(self.budget)).size

    @property
    def exports(self) -> bool:
        return self.artifact.export or self.cap is not None

    def _shorten(self) -> None:
        """Limit a run on synthetic data to `data.synthetic`, without milestones."""
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
    """Return the canonical form of a budget, which names the run's folder."""
    try:
        found = parse_budget(text).canonical
    except ValueError as error:
        hint = f", or {DENSE}" if "is not a budget" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
    if "/" in found:
        raise ValueError(f"budget={text} has no finite decimal form: write it as 0.33 or so")
    return found


def settings(node: Any, start: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key's full name, value and default (None without one)."""
    for entry in dataclasses.fields(node):
        value = getattr(node, entry.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{start}{entry.name}.")
            continue
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        yield f"{start}{entry.name}", value, None if default is dataclasses.MISSING else default
