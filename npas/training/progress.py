"""How far a training has come, as its checkpoints say."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from npas.config import Config
from npas.training.checkpoint import Checkpoint
from npas.utils.json_data import decode


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # whole epochs done, measured and saved
    logged: int = 0  # lines of the log
    prunings: int = 0  # times that filters were pruned
    elapsed_s: float = 0.0  # in all the processes that worked on this run
    metrics: dict[str, float] | None = None  # of the last epoch, on held-out data
    best: dict[str, Any] | None = None  # step, epoch and metrics of the best epoch on that data
    history: dict[str, list[float]] = field(default_factory=dict)  # a column a metric of that data
    wandb_id: str | None = None
    # Stretches of the run whose batches were shared out in another way, up to which step each.
    earlier: list[dict[str, int]] = field(default_factory=list)

    def is_over(self, config: Config) -> bool:
        """Return whether the training has come to its end: its epochs', or its clock's."""
        most_s = config.trainer.max_seconds
        return self.epoch >= config.epochs or (most_s is not None and self.elapsed_s >= most_s)


def read_progress(
    found: Checkpoint, epochs: int | None = None, steps_per_epoch: int = 1
) -> Progress:
    """Return the progress that a checkpoint holds; ValueError if it cannot be.

    `epochs`, of so many steps, are those of the training that goes on from it.
    """
    with found.refusing():
        raw = found.state["progress"]
        decode(Progress, raw, "progress", {key.name for key in fields(Progress)})
        progress = Progress(**raw)  # whose whole numbers stay whole
        whole, rest = divmod(progress.step, steps_per_epoch)
        # One that was stopped by a signal after an epoch's last step has not done that epoch yet.
        done = {whole} if rest else {whole - 1, whole}
        if epochs is not None and not (progress.epoch in done and 0 <= progress.epoch <= epochs):
            raise ValueError(
                f"it has step {progress.step} and epoch {progress.epoch}, in a training of"
                f" {epochs} epochs, {steps_per_epoch} steps each"
            )
    return progress
