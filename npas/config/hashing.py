"""The hash of the config keys that affect a run's result, and the run folder named after it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npas.config.load import ignored
from npas.config.renames import first_setting
from npas.config.schema import SYNTHETIC, Config, SyntheticConfig, settings
from npas.config.sharing import DENSE
from npas.config.typed import keys_of

# Keys that do not affect the result and are not hashed. A node includes all of its keys.
# `task.form` and `task.max_damaged` are ImageNet's file format and limit of damaged images.
HASH_EXCLUDED = frozenset((
    "exp", "run_root", "resume", "force", "verbose", "dry_run", "data.root", "data.download",
    "data.workers", "distill.cache", "sharing.lsm_every", "sharing.recompute", "task.form",
    "task.max_damaged", "trainer.device", "trainer.checkpoint_every", "trainer.keep_last",
    "trainer.log_every", "wandb",
))  # fmt: skip

# How a batch is split. Batch norms see one part at a time, so these keys affect the result, but
# `resume=DIR` accepts a checkpoint with other values.
OF_PARTS = ("trainer.devices", "trainer.grad_accum_steps")


def config_hash(config: Config) -> str:
    """Hash the keys that affect the result, as 64 hex digits.

    Only values that differ from the schema's defaults are hashed, so that a new key does not change
    the hashes of earlier runs. (To change a default, raise RECIPE_VERSION.) Settings that are
    ignored are not hashed either.
    """
    assert dataclasses.is_dataclass(config.model) and dataclasses.is_dataclass(config.task)
    left_out = set(ignored(config))
    if config.data.source != SYNTHETIC:
        left_out |= set(keys_of(SyntheticConfig, "data.synthetic."))
    deciding = dict(
        # As a list, since the order of patterns matters: the first that matches a layer counts.
        first_setting(key, list(value.items()) if isinstance(value, dict) else value)
        for key, value, default in settings(config, "")
        if key not in left_out and not is_excluded(key)
        # A family's defaults depend on its name, which is always hashed.
        if value != default or key in ("recipe_version", "model.family", "task.family")
    )
    if config.sharing.fits and config.sharing.templates is None and config.budget != DENSE:
        # Before there were codebooks all fits were by bases, and their results are still valid.
        if config.sharing.fit_generator == "basis":
            del deciding["sharing.generator"]
        else:
            deciding.setdefault("sharing.generator", "codebook or basis")
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def in_parts(config: Config, devices: int, grad_accum_steps: int) -> Config:
    """Return the config with other numbers of processes and batch parts."""
    trainer = dataclasses.replace(
        config.trainer, devices=devices, grad_accum_steps=grad_accum_steps
    )
    return dataclasses.replace(config, trainer=trainer)


def parts_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return a stored config's numbers of processes and batch parts."""
    trainer = config.get("trainer", {})
    return trainer.get("devices", 1), trainer.get("grad_accum_steps", 1)


def is_excluded(key: str) -> bool:
    """Return whether a key, by its full name, does not affect the result."""
    return key in HASH_EXCLUDED or key.partition(".")[0] in HASH_EXCLUDED


def run_dir(config: Config) -> Path:
    """Return the run's folder, a function of the config alone."""
    if config.budget is None:
        share = f"templates-{config.sharing.templates}"
    else:
        share = f"budget-{config.budget}"
    name = f"{share}_seed-{config.seed}_{config_hash(config)[:8]}"
    return Path(config.run_root) / config.exp / name


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested nodes to full key names: {"optim": {"lr": 0.1}} -> {"optim.lr": 0.1}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain data, as stored in `config.yaml` and `result.json`."""
    return dataclasses.asdict(config)
