"""Read the data and check everything before a training writes or removes files."""

from __future__ import annotations

import logging

from npas.tasks import base
from npas.training import distillation, initial
from npas.training.experiment import Experiment, check_parts
from npas.training.precision import Precision
from npas.training.state import named_checkpoint

log = logging.getLogger(__name__)


def prepare(experiment: Experiment) -> None:
    """Read the data, check data, device and checkpoint, and load initial weights and the teacher.

    Raises ValueError for user errors. Writes and removes nothing.
    """
    config, task = experiment.config, experiment.task
    check_parts(experiment)
    named_checkpoint(config, experiment.stage)
    task.setup()
    if config.data.verify == "warn" and task.source == "real" and task.compared is None:
        log.warning("data.verify=warn has no effect: no checksums of %s are known", task.name)
    task.steps_per_epoch(config.batch_size)
    task.check_network(experiment.model)
    base.check_workers(task, config.data.workers)
    Precision(config.precision, experiment.process.device)
    initial.start(experiment)
    distillation.prepare(experiment)
