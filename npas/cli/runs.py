"""Check the config of a run and bring back a run that was stored; what the commands share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas import config as schema
from npas.cli import app
from npas.config import Config, flat
from npas.config.renames import modernize
from npas.utils.checks import join

CONFIG_FILE = "config.yaml"

if TYPE_CHECKING:
    from torch import nn

    from npas.sharing import Allocation
    from npas.training import Experiment
    from npas.training.progress import Progress


@dataclass(frozen=True)
class Data:
    """Where the data of a stored run lie; null: where the run found them."""

    root: str | None = None
    download: bool | None = None


def check(raw: Mapping[str, Any]) -> Config:
    """Check a whole config; ValueError. What can be checked without torch is checked without it."""
    quick = schema.load_config(raw)

    from npas import models, tasks

    family = tasks.family(quick.task["family"])
    config = schema.load_config(raw, models.family(quick.model["family"]).Config, family.Config)
    if (settle := getattr(family, "settle", None)) is not None:  # what only the data can tell
        config = dataclasses.replace(config, task=settle(config.task, config.data))
    return config


def check_arguments(raw: dict[str, Any]) -> tuple[Config, str | None]:
    """Check what a command line was composed to; ValueError.

    `run=DIR` (or a YAML file) takes the config that a run stored; the other arguments change
    single keys of that. The text says so if this is another run than the one in the folder.
    """
    run = raw.pop("run", None)
    if run is None:
        return check(raw), None
    file = Path(str(run))
    file = file / CONFIG_FILE if file.is_dir() else file
    stored, folder = read_config(file), file.parent
    if isinstance(stored.get("exp"), str) and folder.absolute().parent.name == stored["exp"]:
        deep = folder if len(folder.parts) > 2 else folder.absolute()
        stored["run_root"] = str(deep.parent.parent)
    # These are for one command each.
    stored |= {key: raw[key] for key in ("resume", "force", "verbose", "dry_run")}
    _change(stored, raw)
    try:
        config = check(stored)
    except ValueError as error:
        raise ValueError(f"run={run}: {error}") from None
    if schema.run_dir(config).absolute() == folder.absolute():
        return config, None
    return config, f"run={run}: with these settings it is another run: {schema.run_dir(config)}"


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.yaml as plain data; ValueError if it cannot be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        stored = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): name a run's folder") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is no config that can be read: {reason}") from None
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"{file} must be a mapping of keys: put the run's own config back")
    return modernize({str(key): value for key, value in stored.items()})


def _change(stored: dict[str, Any], composed: Mapping[str, Any]) -> None:
    """Copy the keys that the command line names from the composed config; ValueError."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = list(HydraConfig.get().overrides.task)
    for override in OverridesParser.create().parse_overrides(words):
        *above, leaf = override.key_or_group.split(".")
        value, node = composed, stored
        for name in above:
            value, node = value.get(name, {}), node.setdefault(name, {})
        if override.is_delete() or leaf == "exp" or isinstance(value.get(leaf), dict):
            raise ValueError(
                f"{override.input_line} cannot stand beside run=: change single keys, as"
                " optim.lr=0.1"
            )
        if leaf in value:  # else the command has taken it out, as `run` itself
            node[leaf] = value[leaf]


def edited(folder: Path, config: Config) -> str | None:
    """Return what was changed by hand in a run's config.yaml; None if nothing, or there is none.

    A key that does not decide the result may also differ because the run is continued with another
    value: it counts only if it is not what the run's last result says, either.
    """
    from npas.reporting import results

    file = folder / CONFIG_FILE
    if not file.exists():
        return None
    try:
        stored = flat(schema.to_dict(check(read_config(file))))
    except ValueError as error:
        return str(error)
    ours = {k: v for k, v in flat(schema.to_dict(config)).items() if not schema.is_excluded(k)}
    with contextlib.suppress(ValueError, OSError):  # no result, or none that can be read
        ours |= flat(results.read(folder).config)
    changed = [key for key, value in ours.items() if key in stored and stored[key] != value]
    return f"{join(changed, 'and')} changed" if changed else None


def folder_of(run: str) -> Path:
    """Return the folder of a run that may be named by one of its checkpoints."""
    path = Path(run)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def restore(run: str, changes: Mapping[str, Any]) -> Experiment:
    """Build the experiment of a run's folder, or of one checkpoint, with its trained weights.

    `changes` replaces keys that do not decide the result, by full name; None leaves one as it is.
    Its `unfinished` says so if the run was not trained to its end.

    ValueError if there is no checkpoint that can be read.
    """
    from npas.training import build
    from npas.training.grouping import from_dict
    from npas.training.progress import read_progress
    from npas.training.state import load_weights, trained_checkpoint

    checkpoint = trained_checkpoint(Path(run))
    raw, grouping = checkpoint.state["config"], checkpoint.state.get("grouping")
    for key, value in changes.items():
        assert schema.is_excluded(key)
        node, _, leaf = key.rpartition(".")
        target = raw.setdefault(node, {}) if node else raw
        if value is not None and isinstance(target, dict):  # what is none, `check` refuses
            target[leaf] = value
    grouped = from_dict(grouping) if grouping else None
    experiment = build(check(raw), grouped, stored=checkpoint.state)
    load_weights(experiment.model, checkpoint)
    experiment.unfinished = _unfinished(folder_of(run), read_progress(checkpoint), experiment)
    return experiment


def _unfinished(folder: Path, progress: Progress, experiment: Experiment) -> str | None:
    """Return how far a run came whose checkpoint is not its end; None for one that is."""
    from npas.reporting import results

    status = "done"
    with contextlib.suppress(ValueError, OSError):  # one that is still training has no result
        status = results.read(folder).status
    step, epoch, epochs = progress.step, progress.epoch, experiment.config.epochs
    if status == "done" and progress.is_over(experiment.config):
        return None
    ended = "" if status == "done" else f"; the run's status is {status}"
    return f"unfinished: weights after step {step}, {epoch} of {epochs} epochs done{ended}"


def restore_to_measure(
    run: str, device: str, data: Data, split: str, remedy: str = "split=test", show: bool = False
) -> Experiment:
    """Build a run's experiment with its trained weights and read its data; ValueError.

    What the run cannot do, as to `show` samples of a task without pictures, is refused before.
    """
    from npas.tasks.base import has_pictures

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
        held = experiment.config.data.val_fraction
        raise ValueError(f"the run held no data out (data.val_fraction={held}): {remedy}")
    if show and not has_pictures(experiment.task):
        raise ValueError(f"{experiment.task.name} has no pictures to show: leave show out")
    experiment.task.setup()
    return experiment


def warn_of_ignored(command: str, config: Config) -> None:
    """Report which settings have no effect beside the others, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in schema.ignored(config).items():
        by_reason.setdefault(reason, []).append(key)
    for reason, keys in by_reason.items():
        app.say(command, f"warning: {join(keys, 'and')} ignored: {reason}")


def artifact_text(taken: int, config: Config) -> str:
    """Return what the artifact of a network takes, and may take, in words."""
    packing, cap = config.artifact, config.cap
    text = f"artifact {taken:,} bytes before compression ({packing.words})"
    if cap is None:
        return text
    expected = packing.expected_ratio
    return f"{text} of {cap:,}{f' x {expected:g} expected' if expected > 1 else ''}"


def plan_text(model: nn.Module, allocation: Allocation | None) -> str:
    """Return a description of the allocation of a network, or the network that shares nothing."""
    if allocation is not None:
        return allocation.table()
    from npas.sharing import count_parameters

    return f"dense network: {count_parameters(model):,} parameters, nothing shared"
