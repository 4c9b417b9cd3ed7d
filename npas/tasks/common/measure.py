"""Helpers for `Task.evaluate`: eval mode, and results gathered over ranks."""

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
    """Put a network into eval mode, without gradients; yields its device."""
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
    """Fill a zero tensor with what `measure` returns for this rank's batches; sum over ranks.

    `measure` returns an index into `found` and the values to store there.
    """
    for batch in own:
        index, values = measure(batch)
        found[index] = values
    return over_ranks(found, world)
