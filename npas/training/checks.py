"""Check what a checkpoint says of a training against the training that is to go on from it.

Its checksums match: they tell damage, but not a checkpoint that was edited or is another run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from npas.training.checkpoint import Checkpoint
from npas.utils.json_data import decode, shown

if TYPE_CHECKING:
    from npas.training.state import Progress


@dataclass(frozen=True)
class _Best:
    """The fields of `Progress.best`."""

    step: int
    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Length:
    """How long a training is."""

    epochs: int
    steps_per_epoch: int

    def has(self, step: int, epoch: int) -> bool:
        """Return whether a training comes by this step with so many whole epochs done.

        One that was stopped by a signal after an epoch's last step has not done that epoch yet.
        """
        whole, rest = divmod(step, self.steps_per_epoch)
        done = {whole} if rest else {whole - 1, whole}
        return 0 <= step <= self.epochs * self.steps_per_epoch and epoch in done and epoch >= 0


def read_progress(
    found: Checkpoint, kind: type[Progress], length: Length | None = None, metric: str | None = None
) -> Progress:
    """Return the progress that a checkpoint holds; ValueError, naming the field, if it cannot be.

    `length` is that of the training that goes on from it, `metric` what its epochs are chosen by.
    """
    raw = found.state["progress"]
    with found.refusing():
        names = {field.name for field in fields(kind)}
        progress: Progress = decode(kind, raw, "progress", names - {"step", "epoch"})
        if min(progress.step, progress.epoch, progress.logged, progress.elapsed_s) < 0:
            raise ValueError("progress must have no negative step, epoch, logged or elapsed_s")
        if progress.step != found.state["step"]:
            raise ValueError(f"progress.step must be {found.state['step']}, not {progress.step}")
        if length is not None and not length.has(progress.step, progress.epoch):
            raise ValueError(
                f"progress has step {progress.step} and epoch {progress.epoch}, in a training of"
                f" {length.epochs} epochs, {length.steps_per_epoch} steps each"
            )
        _check_best(progress, metric)
        _check_history(progress)
    return kind(**raw)  # whose whole numbers stay whole


def _check_best(progress: Progress, metric: str | None) -> None:
    if progress.best is None:
        return
    best: _Best = decode(_Best, progress.best, "progress.best")
    if not (0 < best.step <= progress.step and 0 < best.epoch <= progress.epoch):
        raise ValueError(f"progress.best must lie before step {progress.step}, not at {best.step}")
    if metric is not None and metric not in best.metrics:
        raise ValueError(f"progress.best.metrics lacks {metric}")


def _check_history(progress: Progress) -> None:
    epochs = progress.history.get("epoch", [])
    rising = all(a < b for a, b in zip([0, *epochs], [*epochs, progress.epoch + 1], strict=True))
    if not rising or any(len(column) != len(epochs) for column in progress.history.values()):
        raise ValueError("progress.history must have a value for each epoch, and no later epochs")


def check_scaler(stored: object, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a gradient scaler; ValueError unless it has what our own has."""
    if not isinstance(stored, dict) or stored.keys() != own.keys():
        raise ValueError(f"scaler must have {', '.join(own)}, not {shown(stored)}")
    for name, value in stored.items():
        number: float = decode(type(own[name]), value, f"scaler.{name}")
        if number < 0 or (name == "scale" and not number):
            raise ValueError(f"scaler.{name} must not be {value}")
    return stored


def check_counts(samples_steps: torch.Tensor, progress: Progress) -> None:
    """ValueError unless a meter's counts of samples and steps can be those of this training."""
    samples, steps = samples_steps.tolist()
    if not 0 <= steps <= min(samples, progress.step):
        raise ValueError(f"the meter has counted {steps} steps of {samples} samples")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested nodes to full key names: {"optim": {"lr": 0.1}} -> {"optim.lr": 0.1}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
