"""Small trainings on the real digits: a fraction of a second an epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npas.config import Config, load_config
from npas.models import wrn
from npas.tasks import digits
from npas.training import Experiment, Outcome, build, train

# Five steps an epoch, a fifth of a second on one thread; dropout, so that torch's RNG matters.
SMALL: dict[str, Any] = {
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

MakeConfig = Callable[..., Config]
RunSmall = Callable[..., tuple[Experiment, Outcome]]


@pytest.fixture
def small() -> MakeConfig:
    """Return a maker of small configs: `small(epochs=3, optim={"lr": 1})`; nodes are merged."""

    def make(**changes: Any) -> Config:
        merged = {
            key: SMALL.get(key, {}) | value if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        return load_config(SMALL | merged, wrn.Config, digits.Config)

    return make


@pytest.fixture
def run_small(small: MakeConfig, tmp_path: Path) -> RunSmall:
    """Return a runner of small trainings: builds, trains, gives back both."""

    def run(folder: str = "run", **changes: Any) -> tuple[Experiment, Outcome]:
        experiment = build(small(**changes))
        return experiment, train(experiment, tmp_path / folder)

    return run
