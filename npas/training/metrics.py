"""Evaluate a network on held-out data, choose the best epoch, and read the test set once."""

import contextlib
import math
from typing import Any

import torch

from npas.tasks.base import Task
from npas.training.averaging import AveragedWeights
from npas.training.experiment import Experiment
from npas.training.meter import Diverged as Diverged
from npas.training.state import TrainState
from npas.utils.json_data import finite

Norms = dict[str, dict[str, float | None]]


def measure(experiment: Experiment, split: str, step: int | None = None) -> dict[str, float]:
    """Evaluate on "val" or "test" in all processes. Raises Diverged if a metric is not finite."""
    model, process = experiment.model, experiment.process
    with experiment.precision.autocast():
        process.broadcast(model.buffers())  # each has its own batch norm statistics
        metrics = experiment.task.evaluate(model, split, rank=process.rank, world=process.world)
    if not all(math.isfinite(value) for value in metrics.values()):
        raise Diverged(f"metrics on the {split} part ({metrics})", step)
    return metrics


def _measure(state: TrainState, split: str, averaged: AveragedWeights | None) -> dict[str, float]:
    with averaged.in_place() if averaged else contextlib.nullcontext():
        return measure(state.experiment, split, state.progress.step)


def validate(state: TrainState, task: Task, steps_per_epoch: int) -> dict[str, float]:
    """Evaluate the latest epoch, which `max_seconds` may have cut short, and update the best one.

    Of equal epochs the later one counts: it has trained longer.
    """
    progress, metric = state.progress, f"val/{task.selection_metric}"
    measured = _measure(state, "val", state.averaged)
    progress.metrics = {f"val/{name}": value for name, value in measured.items()}
    epoch = math.ceil(progress.step / steps_per_epoch)
    for name, value in {"epoch": epoch, **progress.metrics}.items():
        progress.history.setdefault(name, []).append(value)
    sign = -1 if task.lower_is_better else 1
    best = -math.inf if progress.best is None else sign * progress.best["metrics"][metric]
    if sign * progress.metrics[metric] >= best:
        progress.best = {"step": progress.step, "epoch": epoch, "metrics": progress.metrics}
    return progress.metrics


def final_metrics(state: TrainState, task: Task) -> dict[str, Any]:
    """Evaluate the last weights on the test set, and the best epoch's if there is one.

    Test metrics keep their names; metrics of held-out data are "val/...".
    """
    progress, best = state.progress, state.progress.best
    last = {**_measure(state, "test", state.averaged), **(progress.metrics or {})}
    selected = last if best and best["step"] == progress.step else None
    if best and selected is None:
        with state.weights_of(best["step"]) as found:
            if found:
                selected = {**_measure(state, "test", None), **best["metrics"]}
    chosen = f"val {task.selection_metric}" if selected else None
    return {"last": last, "selected": selected, "selected_on": chosen}


def norms_at_divergence(state: TrainState) -> Norms:
    """Return each parameter's norm, and its gradient's norm in the step that diverged.

    A norm is None if it is not finite; gradients' norms are None if only a metric was not finite.
    """
    named = [(k, p.detach()) for k, p in state.model.named_parameters() if p.requires_grad]
    weights = torch.stack([p.norm() for _, p in named]).tolist()
    bad_N = state.meter.bad_norms_N if int(state.meter.bad_step) >= 0 else None
    gradients = [math.nan] * len(named) if bad_N is None else bad_N.tolist()
    found = zip(named, weights, gradients, strict=True)
    return finite({name: {"weight": w, "gradient": g} for (name, _), w, g in found})
