"""Helpers for `Task.evaluate`: eval mode, and results gathered over ranks."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def over_ranks(tensor: Tensor, world: int) -> Tensor:
    """Add up a tensor over all ranks in place, if there is more than one; return it."""
    if world > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


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


def measure(
    model: nn.Module, count: Callable[[int], Sequence[Tensor | int]], batches: int, numbers: int,
    rank: int, world: int, device: torch.device,
) -> Tensor:  # fmt: skip
    """Return the values that `count` returns for each batch, over all ranks: batches x numbers.

    `count` is called in order with the indices of this rank's batches, in eval mode and without
    gradients. The result is float64 on the CPU, bit-identical for any number of ranks.
    """
    # The batches of other ranks stay 0 until the sum over ranks.
    counted_EN = torch.zeros(batches, numbers, dtype=torch.float64, device=device)
    with measuring(model):
        for i in range(rank, batches, world):
            for n, number in enumerate(count(i)):
                counted_EN[i, n] = number
    return over_ranks(counted_EN, world).cpu()
