"""Prune filters in the course of a training: what `pruning.method` asks for.

Masks are buffers of the network, so that checkpoints, the best epoch's among them, hold them and
processes share them. Which filters go depends on weights, on batches that no epoch trains on, and
on nothing else: a resumed run prunes the same ones.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch

from npas.config import DENSE, Config, PruningConfig
from npas.models import InputSpec
from npas.sharing import count_parameters, pruning
from npas.sharing.budget import PruningReport
from npas.tasks.base import inference_flops
from npas.training.experiment import Experiment, build_dense
from npas.training.grouping import TRAIN
from npas.training.progress import Progress

log = logging.getLogger(__name__)

BITS = 32  # of a parameter: a filter's mask is one bit


def stages(settings: PruningConfig, steps: int) -> list[tuple[int, float]]:
    """Return after which steps filters are pruned, and what part of the amount is then.

    Zhu & Gupta 2017 (arXiv 1710.01878), eq. 1, from a density of 1.
    """
    first, last = int(settings.start * steps), int(settings.end * steps)
    if settings.schedule == "one_shot":
        return [(first, 1.0)]
    n = settings.times
    return [(first + (last - first) * i // n, 1 - (1 - i / n) ** 3) for i in range(1, n + 1)]


class Pruner:
    """Prunes an experiment's network when its schedule comes to it; without a method, never."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def prune(self, progress: Progress, at_step: int, steps: int) -> None:
        """Prune what is due before the step after `at_step`, of so many steps in all.

        What was the best epoch so far was another network's, and counts no more.
        """
        settings = self.experiment.config.pruning
        if settings.method is None or self.experiment.stage != TRAIN:
            return
        due = [part for step, part in stages(settings, steps) if step <= at_step]
        if len(due) <= progress.prunings:
            return
        progress.prunings, progress.best = len(due), None
        model, process = self.experiment.model, self.experiment.process
        process.share_buffers(model)  # batch norms' statistics, by which maps are ranked
        scores = self._ranks() if settings.method == "hrank" else pruning.magnitudes(model)
        chosen = pruning.choose(model, pruning.counts(model, settings.amount, due[-1]), scores)
        kept = pruning.keep(model, process.from_leader(chosen))
        filters = sum(map(len, pruning.kept_filters(model).values()))
        left = sum(map(len, kept.values()))
        log.info("pruned after step %d: %d of %d filters are left", at_step, left, filters)

    def _ranks(self) -> dict[str, torch.Tensor]:
        """Return the ranks of feature maps over all processes' batches, in fp32."""
        experiment = self.experiment
        config, task, model = experiment.config, experiment.task, experiment.model
        epochs = map(experiment.batches, itertools.count(config.epochs))
        batches = itertools.chain.from_iterable(epochs)

        def run() -> None:
            for batch in itertools.islice(batches, config.pruning.batches):
                for part in batch.parts(config.trainer.grad_accum_steps):
                    task.loss(model, part)

        # What is compiled calls no hook that is new.
        eager = torch.compiler.set_stance("force_eager") if config.compile else nullcontext()
        with eager:
            ranks = pruning.feature_ranks(model, run)
        return {conv: experiment.process.total(ranks_F) for conv, ranks_F in ranks.items()}


def found(experiment: Experiment, used: int) -> PruningReport | None:
    """Return what is left of an experiment's network as it is now; None where nothing is pruned."""
    if not pruning.has_masks(experiment.model):
        return None
    masks = pruning.kept_filters(experiment.model)
    kept = {conv: mask_F.nonzero().flatten().tolist() for conv, mask_F in masks.items()}
    return planned(experiment.config, experiment.task.spec, used, kept)


def planned(
    config: Config, spec: InputSpec, used: int, kept: Mapping[str, Sequence[int]] | None = None
) -> PruningReport:
    """Return what is left of a network of `used` parameters that keeps these filters of each conv.

    None: as many as the config says.
    """
    model = build_dense(config, spec)
    if kept is None:
        counts = pruning.counts(model, config.pruning.amount)
        kept = {conv: range(count) for conv, count in counts.items()}
    kept = pruning.keep(model, kept)
    filters = sum(map(len, pruning.kept_filters(model).values()))
    exported = count_parameters(pruning.shrink(model))
    parameters = exported if config.budget == DENSE else used + -(-filters // BITS)
    flops = inference_flops(model, spec)
    return PruningReport(filters, sum(map(len, kept.values())), parameters, exported, flops)
