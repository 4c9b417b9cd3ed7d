"""Processes forked for a test, and two tasks that need no files."""

import functools
import multiprocessing
import warnings

import pytest
import torch

from npas import tasks
from npas.config import DataConfig

MAZES = {
    "size": 7,
    "phases": [2, 4, 6],
    "epoch_samples": 130,
    "val_samples": 70,
    "test_samples": 45,
}


@pytest.fixture(scope="session")
def tiny_task():
    """Return a maker of the digits, with a validation part, and of a few mazes."""

    def make(family):
        module = tasks.family(family)
        digits = family == "digits"
        data = DataConfig(root="nowhere", val_fraction=0.1 if digits else None, download=False)
        config = module.Config(**{} if digits else MAZES)
        task = module.Task(config, data, seed=0, device=torch.device("cpu"))
        task.setup()
        return task

    return functools.cache(make)


@pytest.fixture
def fork():
    """Return a starter of processes, which have imported all already; the test's end ends them."""
    started = []

    def start(target, *args):
        process = multiprocessing.get_context("fork").Process(target=target, args=args)
        started.append(process)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            process.start()
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
