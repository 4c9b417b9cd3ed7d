"""Gather all that a training must remember to go on to the bit, and put it back.

Data needs nothing here: batches follow from (seed, epoch, step). The rate follows from the step.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npas._groups import GROUPS_FILE
from npas.config import HASH_EXCLUDED, Config, config_hash, to_dict
from npas.training.checkpoint import Checkpoint, Checkpoints, find_checkpoint
from npas.training.grouping import Grouping, from_dict
from npas.training.precision import Precision

log = logging.getLogger(__name__)

SEARCH, TRAIN = "search", "train"  # the stages of a run; most runs have the last alone


@dataclass
class Progress:
    """Say how far a training has come."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # whole epochs done
    elapsed_s: float = 0.0  # in all the processes that worked on this run
    metrics: dict[str, float] | None = None  # of the last epoch, on held-out data
    best: dict[str, Any] | None = None  # step, epoch and metrics of the best epoch on that data
    history: dict[str, list[float]] = field(default_factory=dict)  # a column a metric of that data
    wandb_id: str | None = None


class TrainState:
    """Tie a training's moving parts together, to be saved at any step and restored."""

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        store: Checkpoints,
        stage: str = TRAIN,
        grouping: Grouping | None = None,
    ) -> None:
        self.config = config
        self.stage = stage
        self.grouping = grouping
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.store = store
        self.progress = Progress()

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        scaler = self.precision.scaler
        state = {
            "progress": asdict(self.progress),
            "config": to_dict(self.config),
            "config_hash": config_hash(self.config),
            "scaler": scaler.state_dict() if scaler else None,
            "stage": self.stage,
            "grouping": self.grouping.to_dict() if self.grouping else None,
        }
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer_tensors(),
            "rng": _rng_tensors(),
        }
        best = self.progress.best
        self.store.save(self.progress.step, state, tensors, best["step"] if best else None)

    def resume(self) -> bool:
        """Restore what `config.resume` asks for, if it is there; say whether anything was.

        ValueError if it is the checkpoint of another config, with the keys that differ.
        """
        self.progress.wandb_id = self._tracked_as()
        if starts_anew(self.config):
            self.store.clear()
            return False
        is_own = self.config.resume == "auto"
        found = self.store.newest() if is_own else named_checkpoint(self.config, self.stage)
        if found is None:
            return False
        _refuse_another_config(self.config, found)
        stored = found.state.get("grouping")
        if self.grouping and stored and from_dict(stored).groups != self.grouping.groups:
            raise ValueError(
                f"{found.folder} was trained with other groups than the run's {GROUPS_FILE} has: "
                "delete that file, or set resume=never"
            )
        self._load(found)
        best = self.progress.best
        if best is not None:  # whose weights are wanted at the end
            self.store.adopt(found.folder.parent, best["step"])
        log.info("resuming from %s, after epoch %d", found.folder, self.progress.epoch)
        return True

    def _load(self, found: Checkpoint) -> None:
        self.model.load_state_dict(found.tensors("model"))
        saved = found.tensors("optimizer")
        with torch.no_grad():
            for name, tensor in self._optimizer_tensors().items():
                tensor.copy_(saved[name])
        if self.precision.scaler:
            self.precision.scaler.load_state_dict(found.state["scaler"])
        rng = found.tensors("rng")
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and torch.cuda.is_available():
            torch.cuda.set_rng_state(rng["cuda"])
        self.progress = Progress(**found.state["progress"])

    def _tracked_as(self) -> str | None:
        """Return the id under which the stage before is tracked: both are one run."""
        if self.grouping is None:
            return None
        search = Checkpoints(checkpoints_folder(self.store.folder.parent, SEARCH)).newest()
        return search.state["progress"]["wandb_id"] if search else None

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """Name the optimizer's own tensors after the parameters they belong to."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }


def checkpoints_folder(run_dir: Path, stage: str) -> Path:
    """Return where a stage of a run keeps its checkpoints."""
    return run_dir / SEARCH / "checkpoints" if stage == SEARCH else run_dir / "checkpoints"


def starts_anew(config: Config) -> bool:
    """Tell whether the run is to forget what it has done so far."""
    return config.resume == "never" or (config.resume == "auto" and config.force)


def named_checkpoint(config: Config, stage: str = TRAIN) -> Checkpoint | None:
    """Open the checkpoint that `config.resume` names; None if it is auto or never.

    None also if what it names has not come beyond the stage before. ValueError if there is none
    that can be read, or if it is another config's.
    """
    if config.resume in ("auto", "never"):
        return None
    path = Path(config.resume)
    has_trained = (path / "checkpoints").is_dir()
    if (path / SEARCH).is_dir() and (stage == SEARCH or not has_trained):
        path = path / SEARCH
    found = find_checkpoint(path)
    _refuse_another_config(config, found)
    return found if found.state.get("stage", TRAIN) == stage else None


def _refuse_another_config(config: Config, found: Checkpoint) -> None:
    if found.state["config_hash"] == config_hash(config):
        return
    ours, theirs = flat(to_dict(config)), flat(found.state["config"])
    differing = [
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not _excluded(key)
    ]
    raise ValueError(
        f"{found.folder} was trained with another config ({'; '.join(differing)}): "
        "set these keys as they are there, or resume=never"
    )


def _rng_tensors() -> dict[str, Tensor]:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested nodes to full key names: {"optim": {"lr": 0.1}} -> {"optim.lr": 0.1}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _excluded(key: str) -> bool:
    return key in HASH_EXCLUDED or key.partition(".")[0] in HASH_EXCLUDED
