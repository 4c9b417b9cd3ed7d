"""Cut an epoch into batches, and deal each one out to the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from npas.tasks.base import rank_share
from npas.utils import rng


def full_batches(count: int, batch_size: int, what: str) -> int:
    """Count the full batches of `count` samples; those left over come up in other epochs.

    ValueError, saying `what` the samples are, if there is none.
    """
    if batch_size > count:
        raise ValueError(f"batch_size={batch_size} is more than the {count} {what}")
    return count // batch_size


def order(seed: int, epoch: int, count: int, device: torch.device) -> Tensor:
    """Return the order in which an epoch sees its samples: their numbers, N."""
    return rng.permutation(rng.derive_key(seed, "order", epoch), count, device)


def shares(
    order_N: Tensor, batch_size: int, steps: range, rank: int, world: int
) -> Iterator[Tensor]:
    """Yield this rank's share of each of the batches `steps`: the samples' numbers, B.

    ValueError if a batch does not divide by the ranks.
    """
    local = rank_share(batch_size, world)
    for step in steps:
        start = step * batch_size + rank * local
        yield order_N[start : start + local]
