"""Exponential moving average of a network's weights, used for evaluation and export."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from npas.training.experiment import Experiment

BATCHES = 50  # most training batches used to recompute batch norm statistics


@contextlib.contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Restore a network's weights on exit."""
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(last)


class AveragedWeights:
    """Average the floating-point tensors of a network's state dict.

    The decay at update t is min(decay, (1 + t) / (10 + t)), so that a short training forgets the
    initial weights. Banks and coefficients are averaged, not the weights generated from them.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        state = model.state_dict()
        self.tensors = {k: v.clone() for k, v in state.items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages after optimizer step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = self.model.state_dict()
        torch._foreach_lerp_(
            list(self.tensors.values()), [state[name] for name in self.tensors], 1 - decay
        )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensors[name].to(tensor, copy=True)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        with restoring(self.model):
            self.model.load_state_dict(self.tensors, strict=False)
            yield


@torch.no_grad()
def measure_statistics(model: nn.Module, run: Callable[[], object]) -> bool:
    """Recompute batch norm statistics over the forward passes of `run`.

    Returns False if the network has no batch norms. The statistics are plain means over batches.
    Other modules are in eval mode: dropout is off, unlike in torch's `update_bn`.
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


def renew_statistics(experiment: Experiment, averaged: AveragedWeights | None, epoch: int) -> None:
    """Recompute the averaged weights' batch norm statistics on the epoch's first batches.

    Averaged statistics belong to earlier weights and fit the averaged weights badly, most of all in
    a short run. Does nothing without averaged weights.
    """
    model, config = experiment.model, experiment.config

    def run() -> None:
        batches = experiment.batches(epoch, workers=config.data.workers)
        for batch in itertools.islice(batches, BATCHES):
            for part in batch.parts(config.trainer.grad_accum_steps):
                with experiment.precision.autocast():
                    experiment.task.loss(model, part)

    if averaged is not None:
        with averaged.in_place():
            if measure_statistics(model, run):
                averaged.load(model.state_dict())
