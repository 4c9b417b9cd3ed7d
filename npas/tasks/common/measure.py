"""Measure a network over a split, each rank its own batches: the frame of a task's `evaluate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from npas.tasks.base import over_ranks

T = TypeVar("T")


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator[torch.device]:
    """Hold a network in eval mode and without gradients; give the device that it is on."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters(), torch.empty(0)).device
    finally:
        model.train(was_training)


def fill(
    found: Tensor, own: Iterable[T], world: int, measure: Callable[[T], tuple[Any, Tensor]]
) -> Tensor:
    """Fill a tensor of zeros by what `measure` finds of this rank's batches; add up all ranks'.

    `measure` returns an index of `found` and its values. What no rank measures stays 0.
    """
    for batch in own:
        place, values = measure(batch)
        found[place] = values
    return over_ranks(found, world)
