"""Build what a config describes: the task and the network that shares inside its budget."""

import dataclasses
from typing import Any

import torch
from torch import nn

from npas import models, tasks
from npas.config import DENSE, Config
from npas.sharing import Allocation, shapeshift
from npas.tasks import Task
from npas.training import seeding
from npas.training.distributed import Process, this_process
from npas.training.precision import Precision
from npas.training.state import named_checkpoint


@dataclasses.dataclass
class Experiment:
    """Hold one run's parts, ready to train or to load a checkpoint into."""

    config: Config
    process: Process
    task: Task
    model: nn.Module
    allocation: Allocation | None  # None for a dense network


def build(config: Config) -> Experiment:
    """Build task, network and allocation from a checked config; reads no data.

    ValueError for a budget that cannot be, or a device that is not there.
    """
    process = this_process(config.trainer)
    seeding.set_determinism(config.deterministic)
    task = tasks.family(config.task.family).Task(
        config.task, config.data, seed=config.seed, device=process.device
    )
    # Built and shared on the CPU, so that a seed means the same weights whatever trains them.
    seeding.seed_torch(config.seed, "init")
    model = models.family(config.model.family).build(config.model, task.spec)
    allocation = None
    if config.budget != DENSE:
        model = shapeshift.share(model, config.budget, **share_keywords(config))
        allocation = shapeshift.allocation(model)
    model.to(process.device)
    if process.device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    return Experiment(config, process, task, model, allocation)


def prepare(experiment: Experiment) -> None:
    """Read the data, and check all that training will ask of them, the device and a checkpoint.

    ValueError for what the user can mend; nothing has been written by then, nor been removed.
    """
    config, task = experiment.config, experiment.task
    named_checkpoint(config)
    task.setup()
    task.steps_per_epoch(config.batch_size)
    Precision(config.precision, experiment.process.device)


def share_keywords(config: Config) -> dict[str, Any]:
    """Return the keywords of `npas.share` and `npas.plan` that the config stands for."""
    keys = dataclasses.fields(config.sharing)
    return {key.name: getattr(config.sharing, key.name) for key in keys} | {"seed": config.seed}
