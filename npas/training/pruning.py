"""Prune filters during a training, as `pruning.method` asks.

Masks are buffers of the network, so checkpoints contain them and processes share them. The choice
depends only on weights and on batches of later epochs: a resumed run prunes the same filters.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch

from npas.config import DENSE, Config, PruningConfig
from npas.models import InputSpec
from npas.sharing import count_parameters
from npas.sharing.budget import PruningReport
from npas.sharing.trained import pruning
from npas.tasks.base import inference_flops
from npas.training.checkpoint import Progress
from npas.training.experiment import Experiment, build_dense
from npas.training.grouping import TRAIN

log = logging.getLogger(__name__)

BITS = 32  # per parameter; a filter's mask counts as one bit


def stages(settings: PruningConfig, steps: int) -> list[tuple[int, float]]:
    """Return the steps after which filters are pruned, each with the part of the amount by then.

    Zhu & Gupta 2017 (arXiv 1710.01878), eq. 1, from a density of 1.
    """
    first, last = int(settings.start * steps), int(settings.end * steps)
    if settings.schedule == "one_shot":
        return [(first, 1.0)]
    n = settings.times
    return [(first + (last - first) * i // n, 1 - (1 - i / n) ** 3) for i in range(1, n + 1)]


def is_pruned(experiment: Experiment, progress: Progress) -> bool:
    """Return whether nothing is left to prune in this training."""
    settings = experiment.config.pruning
    times = settings.times if settings.schedule == "gradual" else 1
    return settings.method is None or experiment.stage != TRAIN or progress.prunings >= times


def prune(experiment: Experiment, progress: Progress, at_step: int, steps: int) -> None:
    """Prune what is due after step `at_step` of `steps`; do nothing without a method.

    Pruning resets the best epoch, which was measured on another network.
    """
    settings, model, process = experiment.config.pruning, experiment.model, experiment.process
    if is_pruned(experiment, progress):
        return
    due = [part for step, part in stages(settings, steps) if step <= at_step]
    if len(due) <= progress.prunings:
        return
    progress.prunings, progress.best = len(due), None
    process.broadcast(model.buffers())  # batch norm statistics affect the ranks of feature maps
    scores = _ranks(experiment) if settings.method == "hrank" else pruning.magnitudes(model)
    chosen = pruning.choose(model, pruning.counts(model, settings.amount, due[-1]), scores)
    kept = pruning.keep(model, process.from_leader(chosen))
    filters = sum(map(len, pruning.kept_filters(model).values()))
    left = sum(map(len, kept.values()))
    log.info("pruned after step %d: %d of %d filters are left", at_step, left, filters)


def _ranks(experiment: Experiment) -> dict[str, torch.Tensor]:
    """Return the ranks of feature maps over all processes' batches, in fp32."""
    config, task, model = experiment.config, experiment.task, experiment.model
    batches = experiment.endless_batches(config.epochs)

    def run() -> None:
        for batch in itertools.islice(batches, config.pruning.batches):
            for part in batch.parts(config.trainer.grad_accum_steps):
                task.loss(model, part)

    # Compiled code does not call new hooks.
    with torch.compiler.set_stance("force_eager") if config.compile else nullcontext():
        ranks = pruning.feature_ranks(model, run)
    return {conv: experiment.process.total(ranks_F) for conv, ranks_F in ranks.items()}


def found(experiment: Experiment, used: int) -> PruningReport | None:
    """Report what is left of an experiment's network; None if pruning is off."""
    if not pruning.has_masks(experiment.model):
        return None
    masks = pruning.kept_filters(experiment.model)
    kept = {conv: mask_F.nonzero().flatten().tolist() for conv, mask_F in masks.items()}
    return planned(experiment.config, experiment.task.spec, used, kept)


def planned(
    config: Config, spec: InputSpec, used: int, kept: Mapping[str, Sequence[int]] | None = None
) -> PruningReport:
    """Report what is left of a network of `used` parameters if it keeps these filters of each conv.

    By default, as many filters are kept as the config asks for.
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
