"""Say which process this is, of how many, and on which device it computes.

One process for now: every caller asks here, so that more of them change this file and not those.
"""

import os
from dataclasses import dataclass

import torch

from npas.config import TrainerConfig


@dataclass(frozen=True)
class Process:
    """Name this process's place among those that train together, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0


def this_process(trainer: TrainerConfig) -> Process:
    """Find this process's place and device. ValueError for a device that is not there."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise ValueError(f"WORLD_SIZE={world}: this version trains in one process; unset it")
    has_gpu = torch.cuda.is_available()
    if trainer.device == "cuda" and not has_gpu:
        raise ValueError("trainer.device=cuda, but torch finds no GPU: set trainer.device=auto")
    on_gpu = has_gpu and trainer.device != "cpu"
    return Process(
        rank=0, world=1, device=torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    )
