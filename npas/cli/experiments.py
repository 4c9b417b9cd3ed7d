"""Check configs and restore stored runs, for all commands."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas import config as schema
from npas.cli import app
from npas.cli.arguments import as_written
from npas.config import CONFIG_FILE, Config, read_config
from npas.utils.checks import join

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import nn

    from npas.sharing import Allocation
    from npas.training import Experiment
    from npas.training.checkpoint import Progress


@dataclass(frozen=True)
class Data:
    """The data of a stored run; by default as in the run's config."""

    root: str | None = None
    download: bool | None = None


def check(raw: Mapping[str, Any]) -> Config:
    """Check a complete config. Raises ValueError, if possible before torch is imported."""
    schema.load_config(raw)
    from npas.training.experiment import check as check_families

    return check_families(raw)


def check_arguments(raw: dict[str, Any], trains: bool = False) -> Config:
    """Check a composed command line, of a command that trains or not. Raises ValueError.

    `run=DIR` (or a YAML file) reads a stored config, and other arguments change single keys of it.
    Logs a line if that makes it another run than the one in the folder.
    """
    run = raw.pop("run", None)
    if run is None:
        return check(raw)
    file = Path(str(run))
    if file.is_dir() and (of := folder_of(str(run))) != file:
        raise ValueError(f"run={run}: name the run's folder, {of} (resume= takes a checkpoint)")
    if file.is_file() and file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"run={run}: name the run's folder, or its {CONFIG_FILE}")
    file = file / CONFIG_FILE if file.is_dir() else file
    stored, folder = read_config(file), file.parent
    if isinstance(stored.get("exp"), str) and folder.absolute().parent.name == stored["exp"]:
        deep = folder if len(folder.parts) > 2 else folder.absolute()
        stored["run_root"] = str(deep.parent.parent)
    # These keys hold for one command only.
    stored |= {key: raw[key] for key in ("resume", "force", "verbose", "dry_run")}
    root = stored.get("run_root")
    _change(stored, raw)
    try:
        config = check(stored)
    except ValueError as error:
        raise ValueError(f"run={run}: {error}") from None
    new = schema.run_dir(config)
    if new.absolute() != folder.absolute():
        if trains and config.run_root == root and config.resume == "auto" and not config.force:
            _refuse_moved(str(run), folder, config)
        log.info("run=%s: with these settings it is another run: %s", run, new)
    return config


def _refuse_moved(run: str, folder: Path, config: Config) -> None:
    """Raise ValueError if the folder's checkpoints are those of this config, under another name."""
    from npas.training.checkpoint import Checkpoints

    found = Checkpoints(folder / "checkpoints").newest()
    if found is not None and found.state.get("config_hash") == schema.config_hash(config):
        raise ValueError(
            f"run={run} was moved or renamed, and would begin again as {schema.run_dir(config)}:"
            f" give it that name, or add resume={run} to continue it there"
        )


def _change(stored: dict[str, Any], composed: Mapping[str, Any]) -> None:
    """Copy the keys set on the command line from the composed to the stored config."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides, keys = list(HydraConfig.get().overrides.task), schema.known_keys()
    for override in OverridesParser.create().parse_overrides(overrides):
        *above, leaf = override.key_or_group.split(".")
        value, node = composed, stored
        for name in above:
            value, node = value.get(name, {}), node.setdefault(name, {})
        is_node = isinstance(value.get(leaf), dict) and override.key_or_group not in keys
        if override.is_delete() or is_node:
            line = as_written(override)
            raise ValueError(f"{line} cannot be combined with run=: set keys, as optim.lr=0.1")
        if leaf in value:  # not `run` itself, which was removed
            node[leaf] = value[leaf]


def folder_of(run: str) -> Path:
    """Return a run's folder, given the folder, its checkpoints or one of them."""
    path = Path(run)
    return next((p.parent for p in (path, path.parent) if p.name == "checkpoints"), path)


def restore(run: str, changes: Mapping[str, Any]) -> Experiment:
    """Build the experiment of a run's folder or checkpoint, with its trained weights.

    `changes` replaces keys that do not affect the result, by full name; None changes nothing. The
    experiment's `unfinished` is set if the run was not trained to its end.
    """
    from npas.training import build
    from npas.training.state import load_weights, trained_checkpoint

    checkpoint = trained_checkpoint(Path(run))
    raw = checkpoint.state["config"]
    for key, value in changes.items():
        assert schema.is_excluded(key)
        node, _, leaf = key.rpartition(".")
        target = raw.setdefault(node, {}) if node else raw
        if value is not None and isinstance(target, dict):  # `check` refuses other values
            target[leaf] = value
    experiment = build(check(raw), checkpoint.grouping, stored=checkpoint.state)
    load_weights(experiment.model, checkpoint)
    experiment.unfinished = _unfinished(folder_of(run), checkpoint.progress, experiment)
    return experiment


def _unfinished(folder: Path, progress: Progress, experiment: Experiment) -> str | None:
    """Describe how far an unfinished run was trained; None for a finished one."""
    from npas.reporting import results

    status = "done"
    with contextlib.suppress(ValueError, OSError):  # a run in training has no result
        status = results.read(folder).status
    step, epoch, epochs = progress.step, progress.epoch, experiment.config.epochs
    if status == "done" and progress.is_over(experiment.config):
        return None
    ended = "" if status == "done" else f"; the run's status is {status}"
    return f"unfinished: weights after step {step}, {epoch} of {epochs} epochs done{ended}"


def restore_to_measure(
    run: str,
    device: str,
    data: Data,
    split: str,
    remedy: str = "set split=test",
    show: bool = False,
) -> Experiment:
    """Build a run's experiment with its trained weights and read its data."""
    from npas.tasks.base import has_examples

    changes = {"trainer.device": device, "data.root": data.root, "data.download": data.download}
    try:
        experiment = restore(run, changes)
    except ValueError as error:  # the commands' own key is `device`
        raise ValueError(str(error).replace("trainer.device", "device")) from None
    if split == "val" and not experiment.task.has_validation:
        fraction = experiment.config.data.val_fraction
        raise ValueError(f"the run held no data out (data.val_fraction={fraction}): {remedy}")
    if show and not has_examples(experiment.task):
        raise ValueError(f"{experiment.task.name} has no samples to show: leave show out")
    experiment.task.setup()
    return experiment


def warn_of_ignored(command: str, config: Config) -> None:
    """Warn of settings that have no effect, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in schema.ignored(config).items():
        by_reason.setdefault(reason, []).append(key)
    for reason, keys in by_reason.items():
        app.say(command, f"warning: {join(keys, 'and')} ignored: {reason}")


def artifact_text(taken: int, config: Config) -> str:
    """Describe the size of a network's artifact and its limit."""
    packing, cap = config.artifact, config.cap
    text = f"artifact {taken:,} bytes before compression ({packing.description})"
    if cap is None:
        return text
    expected = packing.expected_ratio
    return f"{text} of {cap:,}{f' x {expected:g} expected' if expected > 1 else ''}"


def plan_text(model: nn.Module, allocation: Allocation | None) -> str:
    """Describe a network's allocation, or a dense network."""
    if allocation is not None:
        return allocation.table()
    from npas.sharing import count_parameters

    return f"dense network: {count_parameters(model):,} parameters, nothing shared"
