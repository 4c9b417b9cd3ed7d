"""Hold the typed, closed schema that every composed YAML is checked against.

    raw = {"exp": "digits", "budget": "10%", ...}         # what Hydra composed, as plain dicts
    config = check(raw, wrn.Config, digits.Config)
    run_dir(config)                                       # runs/digits/budget-0.1_seed-0_1f0c2a9b

Whatever is wrong with `raw` is a `ValueError` of one line that names the key and the remedy. This
module imports neither torch nor any other layer of npas: what it must know of them is passed in,
and `check(raw)` alone, without the families' own keys, answers a typo before either is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from npas._nodes import GROUPINGS as GROUPINGS
from npas._nodes import LONGEST, MOST_PROCESSES, SearchConfig, SyntheticConfig
from npas._nodes import SEARCHED as SEARCHED
from npas._nodes import DataConfig as DataConfig
from npas._nodes import SharingConfig as SharingConfig
from npas.utils.budget import parse_budget
from npas.utils.checks import above, at_least, at_most, below
from npas.utils.groups_file import is_path, read_groups
from npas.utils.renames import first_setting
from npas.utils.schema import build, keys_of

# Raised by one when a fix changes what an unchanged config trains to, since results from before it
# cannot stand beside results from after it. It is a key of every stored config and part of every
# hash.
RECIPE_VERSION = 1

NO_PACKAGE = "its first line must be '# @package _global_', so that its keys stand at the top"

SYNTHETIC = "synthetic"  # the source of data that are made up
DENSE = "dense"  # the budget that trains the dense network and shares nothing

# The keys that do not decide the result and enter no hash. A node stands for all of its keys.
HASH_EXCLUDED = frozenset(
    {
        "exp",
        "run_root",
        "resume",
        "force",
        "verbose",
        "data.root",
        "data.download",
        "data.workers",
        "dry_run",
        "sharing.lsm_every",
        "sharing.recompute",
        # Of ImageNet alone: how it is packed, and how much damage ends a run.
        "task.form",
        "task.max_damaged",
        "trainer.device",
        "trainer.checkpoint_every",
        "trainer.keep_last",
        "trainer.log_every",
        "wandb",
    }
)

# How a batch is shared out. Batch norms see a part at a time, so these decide the result, too; but
# a run may be told, by `resume=DIR`, to go on from a checkpoint of other numbers.
OF_PARTS = ("trainer.devices", "trainer.grad_accum_steps")


@dataclass(frozen=True)
class OptimConfig:
    """Hold the optimizer's settings, and how the rate goes.

    `schedule=multistep` multiplies the rate by `gamma` at each milestone (an epoch); linear and
    cosine bring it to 0 at the end. `momentum` is also the first beta of the Adam optimizers.
    `clip_norm` limits the norm of the gradient; 0: no limit. Without `decay_norm_bias` norms and
    biases take no weight decay. With `ema_decay` above 0 the exponential moving average of the
    weights is what is measured and exported.
    """

    name: Literal["sgd", "adam", "adamax", "adamw"] = "sgd"
    lr: float = 0.1
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
    """Say on what to train, when to log and save.

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
    """Say whether and under which names Weights & Biases tracks the run."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "npas"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    artifacts: bool = False


@dataclass(frozen=True)
class Config:
    """Hold one run's whole configuration; `model` and `task` are their families' own `Config`."""

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


def check(
    raw: Mapping[str, Any], model_config: type | None = None, task_config: type | None = None
) -> Config:
    """Build the config that `raw` describes; ValueError, in one line, for anything wrong in it.

    `model_config` and `task_config` are the families' dataclasses; without one its node stays a
    plain, unchecked mapping. The budget is spelled in the one way that equal budgets share.
    """
    values, known = dict(raw), known_keys(model_config, task_config)
    if isinstance(values.get("exp"), Mapping):
        raise ValueError(f"the file chosen as +exp=: {NO_PACKAGE}")
    if values.get("budget") is not None:
        budget = str(values["budget"])  # true or a list, too, which is refused as no budget
        values["budget"] = budget if budget == DENSE else canonical_budget(budget)
    for node, schema in (("model", model_config), ("task", task_config)):
        if schema is not None and node in values:
            values[node] = build(schema, values[node], node, known)
    if isinstance(sharing := values.get("sharing"), Mapping):
        groups = sharing.get("groups")
        if isinstance(groups, str) and groups not in GROUPINGS and is_path(groups):
            # What a file says decides the result, not where it lies: the config has its content.
            values["sharing"] = {**sharing, "groups": read_groups(Path(groups))}
    return build(Config, values, "", known)


def search_epochs(config: Config) -> int:
    """Return the epochs of the search for groups; 0 where nothing is searched."""
    if config.budget == DENSE or config.sharing.groups not in SEARCHED:
        return 0
    return config.sharing.search.epochs or max(1, (config.epochs + 5) // 10)


def ignored(config: Config) -> dict[str, str]:
    """Return the keys whose settings have no effect beside the others, each with the reason."""
    found = {}
    if config.budget == DENSE:
        for key, value, default in _settings(config.sharing, "sharing."):
            if value != default and key != "sharing.init":  # a dense network starts from it, too
                found[key] = "budget=dense shares nothing"
    else:
        idle: dict[str, str] = {}
        if config.sharing.templates is not None:
            reason = f"sharing.templates={config.sharing.templates} fixes what each layer mixes"
            idle = {"upsampler": reason, "max_templates": reason}
        if not search_epochs(config):
            reason = "nothing is searched unless sharing.groups is learned or gradient"
            idle |= {f"search.{key.name}": reason for key in dataclasses.fields(SearchConfig)}
        elif config.sharing.generator == "avg":
            idle |= {"search.softmax": "sharing.generator=avg has no coefficients"}
        if config.sharing.generator == "avg":
            idle |= {
                key: "sharing.generator=avg has no coefficients"
                for key in ("coefficient_init", "recurrence_weight", "lsm_every")
            }
        for key, value, default in _settings(config.sharing, "sharing."):
            if value != default and key.removeprefix("sharing.") in idle:
                found[key] = idle[key.removeprefix("sharing.")]
    if config.data.source == SYNTHETIC and config.data.verify != "refuse":
        found["data.verify"] = f"data.source={SYNTHETIC} makes up its data"
    optim, unread = config.optim, "beta2" if config.optim.name == "sgd" else "nesterov"
    for key, value, default in _settings(optim, "optim."):
        if key == f"optim.{unread}" and value != default:
            found[key] = f"optim.name={optim.name} has no {unread}"
        of_steps = key in ("optim.milestones", "optim.gamma") and value != default
        if of_steps and optim.schedule != "multistep":
            found[key] = f"optim.schedule={optim.schedule} has no milestones"
    if optim.schedule == "multistep" and optim.milestones and optim.milestones[0] >= config.epochs:
        found["optim.milestones"] = f"epochs={config.epochs} ends before the first of them"
    return found


def config_hash(config: Config) -> str:
    """Hash the keys that decide the result, as 64 hex digits.

    Of these keys only the values that differ from the schema's defaults enter, so that a key added
    later leaves the hashes of earlier runs as they are. (A default that changes is a change of
    recipe: see RECIPE_VERSION.) Settings that are ignored do not enter either.
    """
    assert dataclasses.is_dataclass(config.model) and dataclasses.is_dataclass(config.task)
    left_out = set(ignored(config))
    if config.data.source != SYNTHETIC:
        left_out |= set(keys_of(SyntheticConfig, "data.synthetic."))
    deciding = dict(
        # The order of a mapping's patterns decides, too: the first that matches a layer counts.
        first_setting(key, list(value.items()) if isinstance(value, dict) else value)
        for key, value, default in _settings(config, "")
        if key not in left_out and not is_excluded(key)
        # A family's own defaults mean nothing without its name.
        if value != default or key in ("recipe_version", "model.family", "task.family")
    )
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def in_parts(config: Config, devices: int, grad_accum_steps: int) -> Config:
    """Return the config of the same run with its batches shared out in another way."""
    trainer = dataclasses.replace(
        config.trainer, devices=devices, grad_accum_steps=grad_accum_steps
    )
    return dataclasses.replace(config, trainer=trainer)


def is_excluded(key: str) -> bool:
    """Tell whether a key, by its full name, does not decide the result."""
    return key in HASH_EXCLUDED or key.partition(".")[0] in HASH_EXCLUDED


def run_dir(config: Config) -> Path:
    """Return the run's folder, a function of the config alone: never of the clock."""
    if config.budget is None:
        share = f"templates-{config.sharing.templates}"
    else:
        share = f"budget-{config.budget}"
    name = f"{share}_seed-{config.seed}_{config_hash(config)[:8]}"
    return Path(config.run_root) / config.exp / name


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain data, as `config.yaml` and `result.json` store it."""
    return dataclasses.asdict(config)


def known_keys(model_config: type | None = None, task_config: type | None = None) -> set[str]:
    """Return the full names of all keys, as far as the families' dataclasses are given."""
    found = set(keys_of(Config)) - {"model", "task"} | {"model.family", "task.family"}
    for node, schema in (("model", model_config), ("task", task_config)):
        if schema is not None:
            found |= set(keys_of(schema, f"{node}."))
    return found


def _settings(node: Any, start: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key's full name, value and default (None where it has none)."""
    for entry in dataclasses.fields(node):
        value = getattr(node, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{start}{entry.name}.")
            continue
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        yield f"{start}{entry.name}", value, None if default is dataclasses.MISSING else default
