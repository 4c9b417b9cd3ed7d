"""Check everything before a training writes files, and try one step."""

import logging
import time

from npas.tasks import base
from npas.training import distillation, initial
from npas.training.distributed import wrap
from npas.training.experiment import Experiment, check_parts
from npas.training.loop import gradient, update
from npas.training.meter import Diverged, Meter, peak_memory_bytes
from npas.training.optim import build_optimizer, learning_rate
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
    if config.data.verify == "warn" and task.source == "real" and not task.compared.found:
        log.warning("data.verify=warn has no effect: no checksums of %s are known", task.name)
    task.steps_per_epoch(config.batch_size)
    task.check_network(experiment.model)
    base.check_workers(task, config.data.workers)
    _ = experiment.precision  # raises ValueError if the device lacks the dtype
    initial.start(experiment)
    distillation.prepare(experiment)


def one_step(experiment: Experiment) -> str:
    """Take the run's first step; return its loss, time and memory as a line of text."""
    config, task, process = experiment.config, experiment.task, experiment.process
    task.setup()
    meter, precision = Meter(process), experiment.precision
    optimizer = build_optimizer(experiment.model, config.optim)
    network = wrap(experiment.model, process, config).train()
    batch = next(experiment.batches(epoch=0))
    started = time.perf_counter()
    parts = batch.parts(config.trainer.grad_accum_steps)
    finite, sums, norms_N = gradient(
        experiment.learner, network, parts, optimizer, precision, experiment.recurrence_weight
    )
    went_wrong = meter.add(1, batch.size, finite, sums, norms_N)
    rate = learning_rate(config, 0, task.steps_per_epoch(config.batch_size))
    update(optimizer, rate, precision, went_wrong, norms_N)
    loss = meter.read()["train/loss"]
    try:
        meter.check()
    except Diverged as reason:
        raise ValueError(f"{reason}: lower optim.lr, or set precision=fp32") from None
    seconds, memory = time.perf_counter() - started, peak_memory_bytes(process.device)
    return f"one step: loss {loss:.4g}, {seconds:.2f} s, {memory / 2**20:,.0f} MiB at the peak"
