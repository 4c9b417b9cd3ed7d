"""The typed, closed schema of a run's configuration: dataclasses that check their own values.

A value out of range is a `ValueError` of one line that names the key and what to change. Imports
neither torch nor a task or model family: the families' own keys are their `Config` classes.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from npas.utils.budget import parse_budget
from npas.utils.checks import above, at_least, at_most, below, join

# Raised by one when a fix changes what an unchanged config trains to, since results from before it
# cannot stand beside results from after it. It is a key of every stored config and part of every
# hash.
RECIPE_VERSION = 1

NO_PACKAGE = "its first line must be '# @package _global_', so that its keys stand at the top"

SYNTHETIC = "synthetic"  # the source of data that are synthetic
FIT = "fit"  # the beginning of a sharing.init that fits the network to trained weights
DENSE = "dense"  # the budget that trains the dense network and shares nothing

MOST_TEMPLATES = 1000  # of a layer: more is a typing error, and would fill the memory
LONGEST = 1_000_000  # epochs, or images a batch: more is a typing error, and may fill the memory

SEARCHED = ("learned", "gradient")  # groupings that a short training of their own has to find
MOST_PROCESSES = 1024  # of one machine: more is a typing error
GROUPINGS = ("single", "type", "shape", "random", *SEARCHED)

FITTED = (
    "generator", "upsampler", "groups", "num_groups", "max_templates", "coefficient_init",
    "allocator",
)  # fmt: skip
"""The keys of `sharing` that the trained weights decide where `init` says fit."""


@dataclass(frozen=True)
class SearchConfig:
    """How groups are found where sharing.groups is learned or gradient.

    The search trains one group inside the run's budget, but never more than the dense count, for
    `epochs` of its own (null: a tenth of the run's), in which it runs through the whole schedule.
    """

    epochs: int | None = None
    softmax: bool = False
    templates: int = 4

    def __post_init__(self) -> None:
        at_least("sharing.search.epochs", self.epochs, 1)
        at_most("sharing.search.epochs", self.epochs or 1, LONGEST)
        at_least("sharing.search.templates", self.templates, 2)


@dataclass(frozen=True)
class SharingConfig:
    """The keywords of `npas.share`, and what training does with coefficients.

    `init` names trained weights to start from: a run, or dense weights that are projected into the
    bank; `fit:PATH` plans the sharing itself from them (`npas.share(model, budget, init="fit")`),
    `fit` from those of `model.pretrained`. `templates` takes the place of a budget.
    `recurrence_weight` times the mean cosine of the coefficients of layers that mix the same
    templates is taken off the loss. Every `lsm_every` epochs, if not 0, the layer similarity matrix
    is logged.
    """

    generator: Literal["avg", "wavg", "emb"] = "wavg"
    upsampler: Literal["inter", "repeat", "mask", "wavg"] = "inter"
    groups: dict[str, str] | str = "single"
    num_groups: int | None = None
    max_templates: int = 8
    templates: int | Literal["layers"] | None = None
    coefficient_init: Literal["orthogonal", "sparse", "released"] = "orthogonal"
    recurrence_weight: float = 0.0
    lsm_every: int = 0
    include: list[str] | None = None
    exclude: list[str] | None = None
    allocator: Literal["npas", "reference"] = "npas"
    recompute: bool = False
    init: str | None = None
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if isinstance(self.groups, str) and self.groups not in GROUPINGS:
            raise ValueError(
                f"sharing.groups must be {join(GROUPINGS)}, a mapping of layer patterns to groups, "
                "as 'sharing.groups={stages.0.*: a}', or the folder of a run that found some; "
                f"{self.groups!r} is none of these"
            )
        counted = self.groups in ("random", *SEARCHED)
        if counted and self.num_groups is None:
            raise ValueError(
                f"sharing.groups={self.groups} needs to know how many: set sharing.num_groups"
            )
        if not counted and self.num_groups is not None:
            raise ValueError(
                f"sharing.num_groups={self.num_groups} is for sharing.groups=random, learned or "
                "gradient: set it to null"
            )
        if self.groups in SEARCHED and self.templates is not None:
            raise ValueError(
                f"sharing.templates={self.templates} needs groups of one shape, and "
                f"sharing.groups={self.groups} finds others: set a budget in place of templates"
            )
        if self.groups == "learned" and self.generator == "avg":
            raise ValueError(
                "sharing.groups=learned groups layers by their coefficients, and "
                "sharing.generator=avg has none: choose wavg or emb"
            )
        if self.init is not None and not self.init.strip():
            raise ValueError("sharing.init must not be empty: name a run or a file, or null")
        if self.weights is not None:  # one path is spelled in many ways, and enters the hash
            path = os.path.normpath(self.weights)
            if path == FIT:  # a folder of that name
                path = os.path.join(os.curdir, path)
            object.__setattr__(self, "init", f"{FIT}:{path}" if self.fits else path)
        if self.fits and self.templates is None:
            self._check_fit()
        at_least("sharing.num_groups", self.num_groups, 1)
        at_least("sharing.max_templates", self.max_templates, 1)
        if isinstance(self.templates, int):
            at_least("sharing.templates", self.templates, 1)
            at_most("sharing.templates", self.templates, MOST_TEMPLATES)
        at_least("sharing.recurrence_weight", self.recurrence_weight, 0)
        at_least("sharing.lsm_every", self.lsm_every, 0)
        if self.coefficient_init == "sparse" and self.allocator == "reference":
            raise ValueError(
                "sharing.coefficient_init=sparse is not how sharing.allocator=reference starts: "
                "set sharing.coefficient_init=released or sharing.allocator=npas"
            )

    @property
    def fits(self) -> bool:
        """Return whether the sharing is planned from trained weights."""
        return self.init is not None and self.init.partition(":")[0] == FIT

    @property
    def weights(self) -> str | None:
        """Return the run or the file to start from, if any is named."""
        return (self.init or "").partition(":")[2] or None if self.fits else self.init

    def _check_fit(self) -> None:
        if self.groups in SEARCHED:
            raise ValueError(
                f"sharing.init={self.init} finds groups from the weights: set sharing.groups=single"
            )
        if self.recurrence_weight:
            raise ValueError(
                f"sharing.init={self.init} shares no templates that could grow alike: set "
                "sharing.recurrence_weight=0, or sharing.templates"
            )


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
class OptimConfig:
    """The optimizer's settings, and how the rate goes.

    `schedule=multistep` multiplies the rate by `gamma` at each milestone (an epoch); linear and
    cosine bring it to `min_lr` at the end. `momentum` is also the first beta of the Adam kind.
    `clip_norm` limits the norm of the gradient; 0: no limit. Without `decay_norm_bias` norms and
    biases take no weight decay. With `ema_decay` above 0 the exponential moving average of the
    weights is what is measured and exported.
    """

    name: Literal["sgd", "adam", "adamax", "adamw"] = "sgd"
    lr: float = 0.1
    min_lr: float = 0.0
    momentum: float = 0.9
    beta2: float = 0.999
    nesterov: bool = True
    weight_decay: float = 5e-4
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.2
    schedule: Literal["multistep", "linear", "cosine"] = "multistep"
    warmup_epochs: int | float = 0
    clip_norm: float = 0.0
    decay_norm_bias: bool = True
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        above("optim.lr", self.lr, 0)
        at_least("optim.min_lr", self.min_lr, 0)
        at_most("optim.min_lr", self.min_lr, self.lr)
        at_least("optim.ema_decay", self.ema_decay, 0)
        below("optim.ema_decay", self.ema_decay, 1)
        at_least("optim.momentum", self.momentum, 0)
        below("optim.momentum", self.momentum, 1)
        at_least("optim.beta2", self.beta2, 0)
        below("optim.beta2", self.beta2, 1)
        at_least("optim.weight_decay", self.weight_decay, 0)
        above("optim.gamma", self.gamma, 0)
        at_least("optim.warmup_epochs", self.warmup_epochs, 0)
        at_least("optim.clip_norm", self.clip_norm, 0)
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError(
                "optim.nesterov=true needs momentum: set optim.momentum above 0 or "
                "optim.nesterov=false"
            )
        if any(a >= b for a, b in zip([0, *self.milestones], self.milestones, strict=False)):
            raise ValueError(
                f"optim.milestones must be epochs above 0 that increase, got {self.milestones}"
            )


@dataclass(frozen=True)
class TrainerConfig:
    """On what to train, when to log and save.

    `devices` processes share each batch; each takes its share in `grad_accum_steps` parts. Both
    change the result. Under torchrun or srun npas-train sets `devices` to the number of processes.
    Gradients travel between them as `gradient_dtype`. With `tf32` GPUs round the factors of fp32
    convolutions and matrix products to TF32. A checkpoint is written after each epoch and,
    if `checkpoint_every` is not 0, after every so many steps; the `keep_last` newest are kept.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    grad_accum_steps: int = 1
    gradient_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    checkpoint_every: int = 0
    keep_last: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for key in ("devices", "grad_accum_steps", "keep_last", "log_every"):
            at_least(f"trainer.{key}", getattr(self, key), 1)
        at_most("trainer.devices", self.devices, MOST_PROCESSES)
        at_least("trainer.checkpoint_every", self.checkpoint_every, 0)


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
    model: Any = field(default_factory=dict)
    task: Any = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    sharing: SharingConfig = field(default_factory=SharingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

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
        self._check_budget()
        if self.data.source == SYNTHETIC:
            self._shorten()

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

    def _check_budget(self) -> None:
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
