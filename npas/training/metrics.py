"""Measure a network on held-out data, choose the best epoch by it, and read the test set once."""

import math
from typing import Any

from torch import nn

from npas.sharing.recurrence import similarity
from npas.tasks import Task
from npas.training.precision import Precision
from npas.training.state import TrainState


class Diverged(Exception):
    """Tell that a loss, a gradient or a metric is no longer a number."""


def measure(task: Task, model: nn.Module, precision: Precision, split: str) -> dict[str, float]:
    """Evaluate on "val" or "test". Diverged if a metric is not finite."""
    with precision.autocast():
        metrics = task.evaluate(model, split)
    if not all(math.isfinite(value) for value in metrics.values()):
        raise Diverged(f"metrics not finite on the {split} part: {metrics}")
    return metrics


def validate(state: TrainState, task: Task) -> dict[str, float]:
    """Measure the epoch just done, and note it as the best if it is.

    Of equals the later counts: it has trained longer.
    """
    progress, metric = state.progress, f"val/{task.selection_metric}"
    measured = measure(task, state.model, state.precision, "val")
    progress.metrics = {f"val/{name}": value for name, value in measured.items()}
    for name, value in {"epoch": progress.epoch, **progress.metrics}.items():
        progress.history.setdefault(name, []).append(value)
    if progress.best is None or progress.metrics[metric] >= progress.best["metrics"][metric]:
        progress.best = {
            "step": progress.step,
            "epoch": progress.epoch,
            "metrics": progress.metrics,
        }
    return progress.metrics


def layer_similarity(model: nn.Module) -> list[dict[str, object]]:
    """Return the layer similarity matrix of every group, as plain data."""
    return [found.to_dict() for found in similarity(model)]


def final_metrics(state: TrainState, task: Task) -> dict[str, Any]:
    """Read the test set: with the last weights, and with the chosen ones where any were chosen.

    The test set's metrics stand under their own names, those of held-out data as "val/...".
    """
    model, progress, best = state.model, state.progress, state.progress.best
    last = {**measure(task, model, state.precision, "test"), **(progress.metrics or {})}
    if best is None:
        return {"last": last, "selected": None, "selected_on": None}
    selected = last
    if best["step"] != progress.step:
        last_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state.store.at(best["step"]).tensors("model"))
        selected = {**measure(task, model, state.precision, "test"), **best["metrics"]}
        model.load_state_dict(last_weights)
    return {"last": last, "selected": selected, "selected_on": f"val {task.selection_metric}"}
