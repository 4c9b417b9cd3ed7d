"""Check everything before a training writes files, try one step, and find parts that fit memory."""

import gc
import logging
import time

import torch

from npas.tasks import base
from npas.training import distillation, initial
from npas.training.distributed import wrap
from npas.training.experiment import Experiment, check_parts
from npas.training.loop import gradient, update
from npas.training.meter import Diverged, Meter, peak_memory_bytes
from npas.training.optim import advise_on_codebooks, build_optimizer, learning_rate
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
    if config.data.verify == "warn" and task.source == "real" and not task.compared.found:
        log.warning("data.verify=warn has no effect: no checksums of %s are known", task.name)
    task.steps_per_epoch(config.batch_size)
    task.check_network(experiment.model)
    base.check_workers(task, config.data.workers)
    _ = experiment.precision  # raises ValueError if the device lacks the dtype
    initial.start(experiment)
    if experiment.epochs:
        advise_on_codebooks(experiment.model, config.optim)
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


def advise_on_memory(experiment: Experiment) -> str:
    """Return the error message for a step out of memory: how many parts of a batch would fit.

    Tries every part size that divides this process's share of the batch, from large to small.
    """
    config, process = experiment.config, experiment.process
    message = f"out of memory with batch_size {experiment.batch_arithmetic()}"
    local = base.rank_share(config.batch_size, process.world)
    now = config.trainer.grad_accum_steps
    try:
        check_parts(experiment, local)
    except ValueError:  # the loss needs the whole batch
        return f"{message}: choose a smaller batch_size or network, or another precision"
    for parts in (n for n in range(now + 1, local + 1) if local % n == 0):
        if _fits(experiment, parts):
            return f"{message}: trainer.grad_accum_steps={parts} (parts of {local // parts}) fits"
    return f"{message}: not even one sample at a time fits; choose a smaller network or precision"


def _fits(experiment: Experiment, parts: int) -> bool:
    config, process = experiment.config, experiment.process
    optimizer = build_optimizer(experiment.model, config.optim)
    try:
        # Two parts: the second one needs memory beside the gradients of the first.
        two = next(experiment.batches(epoch=0)).parts(parts)[:2]
        precision = Precision(config.precision, process.device)
        gradient(experiment.learner, experiment.model.train(), two, optimizer, precision)
    except torch.OutOfMemoryError:
        return False
    finally:
        optimizer.zero_grad()
        gc.collect()
        if process.device.type == "cuda":
            torch.cuda.empty_cache()
    return True
