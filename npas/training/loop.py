"""Train a network on a task: epochs of steps, and after each epoch measure, choose and save.

    outcome = train(build(config), run_dir(config))

The test set is read once, after the last epoch, for the last weights and for those that did best on
held-out data, where the task holds any out. A search for groups (`search.py`) takes the same steps,
the whole schedule in its own epochs, and measures nothing. Nothing here waits for the device but
logging: a step whose loss or gradient is not finite is left out by the optimizer's own kernel, and
the run stops as "diverged" when it next logs.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npas.sharing.recurrence import recurrence_reward
from npas.tasks import Batch, Task
from npas.training import seeding
from npas.training.checkpoint import Checkpoints
from npas.training.console import ProgressDisplay
from npas.training.experiment import Experiment
from npas.training.meter import Meter, peak_memory_bytes
from npas.training.metrics import Diverged, final_metrics, layer_similarity, validate
from npas.training.optim import build_optimizer, learning_rate
from npas.training.precision import Precision
from npas.training.state import TRAIN, TrainState, checkpoints_folder
from npas.training.tracking import Tracker

NO_METRICS: dict[str, Any] = {"last": {}, "selected": None, "selected_on": None}


@dataclass(frozen=True)
class Outcome:
    """Say how a training ended; `metrics` has the three fields of a result file's."""

    status: str  # "done" or "diverged"
    metrics: dict[str, Any]  # last: of the last epoch; selected: of the one chosen by selected_on
    steps: int
    epochs: int
    wall_s: float  # of all the processes that worked on the run, one after the other
    peak_memory_bytes: int  # of this one
    error: str | None = None
    history: dict[str, list[float]] | None = None  # held-out metrics, a value an epoch


def train(experiment: Experiment, run_dir: Path) -> Outcome:
    """Train `experiment.model` in place, from the stage's newest checkpoint in `run_dir` if any.

    The model ends with its last weights. ValueError, before any step, if data are missing or the
    checkpoint is another config's.
    """
    config, task, model = experiment.config, experiment.task, experiment.model
    process, stage, epochs = experiment.process, experiment.stage, experiment.epochs
    task.setup()
    steps_per_epoch = task.steps_per_epoch(config.batch_size)
    optimizer = build_optimizer(model, config.optim)
    precision = Precision(config.precision, process.device)
    seeding.seed_torch(config.seed, "dropout")
    store = Checkpoints(checkpoints_folder(run_dir, stage))
    state = TrainState(config, model, optimizer, precision, store, stage, experiment.grouping)
    state.resume()
    if config.compile:
        model.compile()  # in place: the names in the state dict stay as they are

    progress, meter = state.progress, Meter(process.device)
    started = time.perf_counter() - progress.elapsed_s
    tracker = Tracker(config, run_dir, progress.step, progress.wandb_id, stage)
    progress.wandb_id = tracker.wandb_id
    display = ProgressDisplay(epochs * steps_per_epoch, progress.step, stage)
    shares = experiment.allocation is not None and stage == TRAIN
    regularizer = config.sharing.lsm_regularizer if shares else 0.0

    def report(figures: dict[str, float]) -> None:
        epoch = round(progress.step / steps_per_epoch, 4)
        record = {"step": progress.step, "epoch": epoch, **figures}
        tracker.log(record)
        display.show(record)

    def outcome(status: str, metrics: dict[str, Any], error: str | None = None) -> Outcome:
        seconds, memory = time.perf_counter() - started, peak_memory_bytes(process.device)
        come_to, history = (progress.step, progress.epoch), progress.history or None
        return Outcome(status, metrics, *come_to, seconds, memory, error, history)

    def compare_layers() -> None:
        every = config.sharing.lsm_every
        if shares and every and (progress.epoch % every == 0 or progress.epoch == epochs):
            tracker.log_similarity(progress.step, progress.epoch, layer_similarity(model))

    with tracker, display:
        try:
            if progress.step == 0:
                compare_layers()
            while progress.epoch < epochs:
                model.train()
                for batch in task.train_batches(
                    progress.epoch,
                    config.batch_size,
                    first_step=progress.step - progress.epoch * steps_per_epoch,
                    rank=process.rank,
                    world=process.world,
                ):
                    at_step = progress.step * config.epochs // epochs  # of the whole schedule
                    rate = learning_rate(config.optim, at_step, steps_per_epoch)
                    progress.step += 1
                    finite, sums = gradient(task, model, batch, optimizer, precision, regularizer)
                    went_wrong = meter.add(progress.step, batch.size, finite, sums)
                    update(optimizer, rate, precision, went_wrong)
                    display.step(progress.step)
                    ends_epoch = progress.step % steps_per_epoch == 0
                    if ends_epoch or progress.step % config.trainer.log_every == 0:
                        figures, bad_step = meter.read()
                        report({"lr": rate, **figures})
                        if bad_step is not None:
                            raise Diverged(f"loss or gradient not finite at step {bad_step}")
                progress.epoch += 1
                if task.has_validation and stage == TRAIN:
                    report(validate(state, task))
                compare_layers()
                progress.elapsed_s = time.perf_counter() - started
                state.save()
            metrics = final_metrics(state, task) if stage == TRAIN else NO_METRICS
        except Diverged as reason:
            return outcome("diverged", NO_METRICS, error=str(reason))
        tracker.summarize(metrics["last"])
        return outcome("done", metrics)


def gradient(
    task: Task,
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    regularizer: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Put the batch's gradient into `.grad`; return whether all is finite, and sums to log.

    The regularizer rewards layers for growing alike; the loss that is logged is the task's.
    """
    with precision.autocast():
        loss, sums = task.loss(model, batch)
    sums = {"loss": loss.detach() * batch.size, **sums}
    if regularizer:
        reward = recurrence_reward(model)
        loss = loss - regularizer * reward
        sums["recurrence"] = reward.detach() * batch.size
    if precision.scaler is None:
        loss.backward()
    else:
        precision.scaler.scale(loss).backward()
        precision.scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    finite = loss.isfinite()
    if precision.scaler is None:  # which takes an infinite gradient as its sign to scale less
        finite &= norm.isfinite()
    return finite, {**sums, "grad_norm": norm * batch.size}


def update(
    optimizer: torch.optim.Optimizer, rate: float, precision: Precision, went_wrong: Tensor
) -> None:
    """Go one step down the gradient, unless a loss or gradient `went_wrong` (1.0 on the device)."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    if precision.scaler is None:
        # The fused kernel reads this, as it does from a scaler, and writes nothing where it is 1.
        optimizer.found_inf = went_wrong  # type: ignore[attr-defined]
        optimizer.step()
    else:
        precision.scaler.step(optimizer)
        precision.scaler.update()
    optimizer.zero_grad()
