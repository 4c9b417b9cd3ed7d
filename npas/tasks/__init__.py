"""Hold the tasks npas trains on: data, loss and metric of one task family a module of this folder.

A family is a module that offers `Config` (a dataclass: the closed set of its `task.*` keys) and
`Task`, a class that keeps the protocol below. `family("cifar")` finds `cifar.py`; modules whose
name starts with an underscore are helpers and no families.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from npas.models import InputSpec, find_family

if TYPE_CHECKING:
    from torch import Tensor, nn


class Batch(NamedTuple):
    """Hold one training batch, augmented and on the training device."""

    inputs: Tensor  # float, B x input_shape
    targets: Tensor  # what the task asks for: of classes, int64, B
    size: int  # B, known without asking the device


class Task(Protocol):
    """Describe what the training loop asks of a task.

    The class is made as `Task(config, data, seed=..., device=...)` and reads nothing until `setup`.
    """

    name: str  # of the data set, as results call it
    source: str  # "real", or "standin" for data made up to have the real set's shape
    spec: InputSpec
    selection_metric: str  # the key of `evaluate` by which a checkpoint is chosen; higher is better
    has_validation: bool

    def setup(self) -> None:
        """Read the data onto the device, once. ValueError, one line, if missing or damaged."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Count the full batches of `batch_size` samples (over all ranks) in an epoch."""

    def train_batches(
        self, epoch: int, batch_size: int, first_step: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yield this rank's parts of the epoch's batches, from batch `first_step` on.

        What a sample looks like depends on (seed, epoch, its index) alone: not on batch size,
        ranks, device, or on where the iteration started.
        """

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch's mean loss, and sums over its samples of what is to be logged."""

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Measure on "val" or "test", every sample once, in eval mode without gradients."""


def rank_share(batch_size: int, world: int) -> int:
    """Return each rank's part of a batch; ValueError, with the nearest that divides, if unequal."""
    if batch_size % world:
        raise ValueError(
            f"batch_size={batch_size} does not divide by {world} ranks; "
            f"the nearest that does is {max(1, round(batch_size / world)) * world}"
        )
    return batch_size // world


def family(name: str) -> ModuleType:
    """Return the module of task family `name`. ValueError, with near names, if there is none."""
    return find_family(__name__, "task", name)
