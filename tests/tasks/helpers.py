"""Make tasks, expect errors of one line, and measure as several ranks would."""

import contextlib

import pytest
import torch

from npas import tasks
from npas.config import DataConfig


def make(family, root="nowhere", seed=0, data=(), ready=True, **keys):
    """Make a task of a family, ready for use, with these keys of its config and of `data`."""
    module = tasks.family(family)
    given = {"root": str(root), "val_fraction": None, "download": False} | dict(data)
    config, given = module.Config(**keys), DataConfig(**given)
    config = getattr(module, "settle", lambda config, data: config)(config, given)
    task = module.Task(config, given, seed=seed, device=torch.device("cpu"))
    if ready:
        task.setup()
    return task


@contextlib.contextmanager
def one_line(message):
    """Expect a ValueError whose message matches and is one line."""
    with pytest.raises(ValueError, match=message) as error:
        yield
    assert "\n" not in str(error.value)


class Call:
    """A pickle that asks for a call of any function."""

    def __init__(self, function, *given):
        self.called = function, given

    def __reduce__(self):
        return self.called


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
