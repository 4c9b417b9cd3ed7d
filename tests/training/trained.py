"""What tests look at of small trainings, and how they stop them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from npas.training.state import TrainState


class Stopped(Exception):
    """Stands for a kill right after a checkpoint was written."""


def stop_after(patch: pytest.MonkeyPatch, epochs: int, stage: str = "train") -> None:
    """Let the next trainings stop after their n-th epoch's checkpoint."""
    save = TrainState.save

    def save_and_stop(self: TrainState) -> None:
        save(self)
        if self.experiment.stage == stage and self.progress.epoch == epochs:
            raise Stopped

    patch.setattr(TrainState, "save", save_and_stop)


def log(folder: Path) -> list[dict[str, Any]]:
    """Return the logged figures, without the times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks have the same state, to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
