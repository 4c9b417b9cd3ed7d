"""Measure as several ranks would, in one process."""

import torch


def by_ranks(task, model, split, world, patch):
    """Measure as `world` ranks would, one after the other: count first, then add up and answer."""
    counted = []

    def count(tensor, ranks):
        assert ranks == world
        counted.append(tensor.clone())
        return torch.ones_like(tensor)  # what an answer can be made of

    patch(count)
    for rank in range(world):
        task.evaluate(model, split, rank, world)
    patch(lambda tensor, ranks: torch.stack(counted).sum(0))
    return [task.evaluate(model, split, rank, world) for rank in range(world)]
