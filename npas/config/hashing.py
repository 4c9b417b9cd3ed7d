"""The identity of a run: a hash of the keys that decide its result, and the folder named by it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npas.config.load import ignored
from npas.config.renames import first_setting
from npas.config.schema import SYNTHETIC, Config, SyntheticConfig, settings
from npas.config.typed import keys_of

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
        "distill.cache",
        "sharing.lsm_every",
        "sharing.recompute",
        # Of ImageNet alone: how it is packed, and how much damage ends a run.
        "task.form",
        "task.max_damaged",
        "trainer.device",
        "trainer.checkpoint_every",
        "trainer.keep_last",
        "trainer.log_every",
        "trackers",
        "wandb",
    }
)

# How a batch is shared out. Batch norms see a part at a time, so these decide the result, too; but
# a run may be told, by `resume=DIR`, to go on from a checkpoint of other numbers.
OF_PARTS = ("trainer.devices", "trainer.grad_accum_steps")


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
        for key, value, default in settings(config, "")
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
    """Return whether a key, by its full name, does not decide the result."""
    return key in HASH_EXCLUDED or key.partition(".")[0] in HASH_EXCLUDED


def run_dir(config: Config) -> Path:
    """Return the run's folder, a function of the config alone: never of the clock."""
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
    """Return the config as plain data, as `config.yaml` and `result.json` store it."""
    return dataclasses.asdict(config)
