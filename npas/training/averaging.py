"""Keep a moving average of a network's weights, to be measured and exported in their place."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from npas.training.experiment import Experiment
from npas.training.precision import Precision

BATCHES = 50  # of training, at most, that averaged weights see for their batch norms' statistics


@contextlib.contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Put a network's weights back at the end of a `with`."""
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(last)


class AveragedWeights:
    """Average what is floating in a network's state: parameters and statistics of norms.

    The decay grows to its full value, min(decay, (1 + t) / (10 + t)) at update t, so that a short
    training is not left with its random beginning. Of a shared network it is the bank and the
    coefficients that are averaged, not the weights they generate; those are products of the two.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        state = model.state_dict()
        self.tensors = {k: v.clone() for k, v in state.items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = self.model.state_dict()
        torch._foreach_lerp_(
            list(self.tensors.values()), [state[name] for name in self.tensors], 1 - decay
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load stored averages."""
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensors[name].to(tensor, copy=True)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the network for the length of a `with`."""
        with restoring(self.model):
            self.model.load_state_dict(self.tensors, strict=False)
            yield


@torch.no_grad()
def measure_statistics(model: nn.Module, run: Callable[[], object]) -> bool:
    """Measure the statistics of batch norms anew on what `run` passes; False if there are none.

    They are plain means over the batches. All else is in evaluation mode, so nothing is drawn at
    random, which torch's own `update_bn` does not promise.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None
    if norms:
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    return bool(norms)


def renew_statistics(
    experiment: Experiment, averaged: AveragedWeights | None, precision: Precision, epoch: int
) -> None:
    """Give averaged weights their own statistics of batch norms, on the epoch's first batches.

    The average of the statistics that other weights had fits them badly, most of all in a short
    run. Does nothing without averaged weights.
    """
    model, config = experiment.model, experiment.config

    def run() -> None:
        batches = experiment.batches(epoch, workers=config.data.workers)
        for batch in itertools.islice(batches, BATCHES):
            for part in batch.parts(config.trainer.grad_accum_steps):
                with precision.autocast():
                    experiment.task.loss(model, part)

    if averaged is not None:
        with averaged.in_place():
            if measure_statistics(model, run):
                averaged.load(model.state_dict())
