"""Small trainings on the real digits: a fraction of a second an epoch."""

import pytest
import torch
from trained import Stopped, stop_after

from npas.config import load_config
from npas.models import wrn
from npas.tasks import digits
from npas.training import build, train

# Five steps an epoch, a fifth of a second on one thread; dropout, so that torch's RNG matters.
SMALL = {
    "exp": "small",
    "budget": "dense",
    "epochs": 2,
    "batch_size": 256,
    "model": {"family": "wrn", "depth": 10, "width": 0.5, "dropout": 0.1},
    "task": {"family": "digits"},
    "data": {"val_fraction": 0.1},
    "optim": {"lr": 0.1, "milestones": [1]},
    "trainer": {"device": "cpu", "log_every": 2},
    "wandb": {"mode": "disabled"},
}


def make_small(**changes):
    """Make a small config: `make_small(epochs=3, optim={"lr": 1})`; nodes are merged."""
    merged = {
        key: SMALL.get(key, {}) | value if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return load_config(SMALL | merged, wrn.Config, digits.Config)


@pytest.fixture
def small():
    """Return a maker of small configs."""
    return make_small


@pytest.fixture
def run_small(tmp_path):
    """Return a runner of small trainings: builds, trains, gives back both."""

    def run(folder="run", **changes):
        experiment = build(make_small(**changes))
        return experiment, train(experiment, tmp_path / folder)

    return run


@pytest.fixture
def interrupt(run_small, monkeypatch):
    """Return a runner of small trainings that are killed after their n-th epoch's checkpoint."""

    def run(after, folder="run", **changes):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(patch, after)
            run_small(folder, **changes)
        torch.manual_seed(99)  # another process would not have this one's generator either

    return run
