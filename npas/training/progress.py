"""The progress of a training, as stored in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from npas.config import Config
from npas.training.checkpoint import Checkpoint
from npas.utils.json_data import decode


@dataclass
class Progress:
    """The progress of a training."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # whole epochs done, evaluated and saved
    logged: int = 0  # lines of the log
    prunings: int = 0  # times that filters were pruned
    elapsed_s: float = 0.0  # including earlier, resumed parts of the run
    metrics: dict[str, float] | None = None  # of the last epoch, on held-out data
    best: dict[str, Any] | None = None  # step, epoch and metrics of the best epoch
    history: dict[str, list[float]] = field(default_factory=dict)  # held-out metrics by epoch
    wandb_id: str | None = None
    # Earlier parts of the run with another number of ranks or batch parts, and their last steps.
    earlier: list[dict[str, int]] = field(default_factory=list)

    def is_over(self, config: Config) -> bool:
        """Return whether the training has reached its epochs or `trainer.max_seconds`."""
        most_s = config.trainer.max_seconds
        return self.epoch >= config.epochs or (most_s is not None and self.elapsed_s >= most_s)


def read_progress(
    found: Checkpoint, epochs: int | None = None, steps_per_epoch: int = 1
) -> Progress:
    """Return a checkpoint's progress.

    Raises ValueError if it is malformed, or does not fit a training of `epochs` epochs.
    """
    with found.refusing():
        raw = found.state["progress"]
        decode(Progress, raw, "progress", {key.name for key in fields(Progress)})
        progress = Progress(**raw)  # not the decoded one, whose integers may be floats
        whole, rest = divmod(progress.step, steps_per_epoch)
        # A signal after an epoch's last step stops a run before that epoch counts.
        done = {whole} if rest else {whole - 1, whole}
        if epochs is not None and not (progress.epoch in done and 0 <= progress.epoch <= epochs):
            raise ValueError(
                f"it has step {progress.step} and epoch {progress.epoch}, in a training of"
                f" {epochs} epochs, {steps_per_epoch} steps each"
            )
    return progress
