"""Measure as several ranks would, in one process."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def by_ranks(
    task: Any, model: nn.Module, split: str, world: int, patch: Callable[[Any], None]
) -> list[dict[str, float]]:
    """Measure as `world` ranks would, one after the other: count first, then add up and answer."""
    counted: list[Tensor] = []

    def count(tensor: Tensor, ranks: int) -> Tensor:
        assert ranks == world
        counted.append(tensor.clone())
        return torch.ones_like(tensor)  # what an answer can be made of

    patch(count)
    for rank in range(world):
        task.evaluate(model, split, rank, world)
    patch(lambda tensor, ranks: torch.stack(counted).sum(0))
    return [task.evaluate(model, split, rank, world) for rank in range(world)]
