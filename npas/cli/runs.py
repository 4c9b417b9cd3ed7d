"""Check the config of a run and bring back a run that was stored; what the commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas import config as schema
from npas._schema import join
from npas.cli import app
from npas.config import Config

if TYPE_CHECKING:
    from torch import nn

    from npas.sharing import Allocation
    from npas.training import Experiment


@dataclass(frozen=True)
class Data:
    """Say where the data of a stored run lie; null: where the run found them."""

    root: str | None = None
    download: bool | None = None


def check(raw: Mapping[str, Any]) -> Config:
    """Check a whole config; ValueError. What can be checked without torch is checked without it."""
    quick = schema.check(raw)

    from npas import models, tasks

    return schema.check(
        raw,
        models.family(quick.model["family"]).Config,
        tasks.family(quick.task["family"]).Config,
    )


def folder_of(run: str) -> Path:
    """Return the folder of a run that may be named by one of its checkpoints."""
    path = Path(run)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def restore(run: str, changes: Mapping[str, Any]) -> Experiment:
    """Build the experiment of a run's folder, or of one checkpoint, with its trained weights.

    `changes` replaces keys that do not decide the result, by full name; None leaves one as it is.
    ValueError if there is no checkpoint that can be read.
    """
    from npas.training import build
    from npas.training.checkpoint import find_checkpoint
    from npas.training.grouping import from_dict
    from npas.training.state import SEARCH, load_weights

    folder = Path(run)
    if (folder / SEARCH).is_dir() and not (folder / "checkpoints").is_dir():
        raise ValueError(f"{run} is still searching for its groups: train it to its end first")
    checkpoint = find_checkpoint(folder)
    if checkpoint.state.get("stage") == SEARCH:
        raise ValueError(f"{run} is the search for a run's groups: name the run's own folder")
    raw, grouping = checkpoint.state["config"], checkpoint.state.get("grouping")
    for key, value in changes.items():
        assert schema.is_excluded(key)
        node, _, leaf = key.rpartition(".")
        target = raw.setdefault(node, {}) if node else raw
        if value is not None and isinstance(target, dict):  # what is none, `check` refuses
            target[leaf] = value
    experiment = build(check(raw), from_dict(grouping) if grouping else None)
    load_weights(experiment.model, checkpoint)
    return experiment


def restore_to_measure(
    run: str, device: str, data: Data, split: str, remedy: str = "split=test"
) -> Experiment:
    """Build a run's experiment with its trained weights and read its data; ValueError."""
    changes = {
        "trainer.device": device,
        "data.root": data.root,
        "data.download": data.download,
    }
    try:
        experiment = restore(run, changes)
    except ValueError as error:  # it may name the run's key, and ours is another
        raise ValueError(str(error).replace("trainer.device", "device")) from None
    if split == "val" and not experiment.task.has_validation:
        held = experiment.config.data.split
        raise ValueError(f"the run held no data out (data.split={held}): {remedy}")
    experiment.task.setup()
    return experiment


def warn_of_ignored(command: str, config: Config) -> None:
    """Say which settings have no effect beside the others, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in schema.ignored(config).items():
        by_reason.setdefault(reason, []).append(key)
    for reason, keys in by_reason.items():
        app.say(command, f"warning: {join(keys, 'and')} ignored: {reason}")


def plan_text(model: nn.Module, allocation: Allocation | None) -> str:
    """Describe the allocation of a network, or the network that shares nothing."""
    if allocation is not None:
        return allocation.table()
    from npas.sharing import count_parameters

    return f"dense network: {count_parameters(model):,} parameters, nothing shared"
