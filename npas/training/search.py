"""Learn which layers should share: train with one group, then cluster the layers into groups.

`sharing.groups=learned` follows the paper (Plummer et al. 2022, section 3.2): k-means on the
coefficients or layer embeddings that the search has learned.

`sharing.groups=gradient` clusters by the cosine of gradients, as SuperWeights does (Teterwak et
al., "Learning to Compose SuperWeights for Neural Parameter Allocation Search", WACV 2024), because
similar coefficients do not exclude conflicting gradients. Unlike SuperWeights, we map gradients of
all shapes to the shared template instead of cropping them to common channels within a kernel size,
average many batches in training mode instead of one in eval mode, and merge by average linkage down
to a given number of groups instead of greedily above a threshold.
"""

import copy
import itertools
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from npas import sharing
from npas.config import GROUPS_FILE, Config, search_epochs
from npas.sharing.search import search_vectors, template_gradients
from npas.training import grouping as groupings
from npas.training import seeding
from npas.training.experiment import Experiment
from npas.training.grouping import SEARCH, TRAIN, Grouping
from npas.training.journal import Outcome
from npas.training.loop import train
from npas.training.state import starts_again, to_resume

log = logging.getLogger(__name__)

GRADIENT_BATCHES = 128  # batches whose gradients are averaged
FP16_SCALE = 1024.0  # of an fp16 loss, so that small gradients do not underflow
DIGITS = 7  # of a stored number, about the precision of float32


def stored_grouping(config: Config, run_dir: Path) -> Grouping | None:
    """Return the grouping of the run's finished search; None if there is none.

    It is stored in the run's folder and in every checkpoint trained with it.
    """
    if not search_epochs(config) or starts_again(config):
        return None
    checkpoint = to_resume(config, run_dir, TRAIN)
    is_own = checkpoint is None or checkpoint.folder.parent == run_dir / "checkpoints"
    if is_own and not config.force and (found := groupings.read(run_dir)) is not None:
        return found
    return checkpoint.grouping if checkpoint else None


def search_groups(experiment: Experiment, run_dir: Path) -> tuple[Outcome, Grouping | None]:
    """Train the search's network, cluster its layers and write `groups.json`.

    The search is a run of its own in the sub-folder `search`, and resumes from its newest
    checkpoint. The grouping is None if the search did not finish.
    """
    assert experiment.stage == SEARCH
    process = experiment.process
    if starts_again(experiment.config) and process.is_main:
        (run_dir / GROUPS_FILE).unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    outcome = train(experiment, run_dir / SEARCH)
    if outcome.status != "done":
        reason = outcome.error and f"in the search for groups: {outcome.error}"
        return replace(outcome, error=reason), None
    started = time.perf_counter()
    with process.together():
        grouping = _group(experiment, outcome)
    grouping = replace(grouping, wall_s=outcome.wall_s + time.perf_counter() - started)
    if process.is_main:
        groupings.write(run_dir, grouping)
    return outcome, groupings.from_dict(process.from_leader(grouping.to_dict()))


def _group(experiment: Experiment, outcome: Outcome) -> Grouping:
    config = experiment.config
    method, num_groups = config.sharing.groups, config.sharing.num_groups
    assert isinstance(method, str) and num_groups is not None
    agreement = None
    if method == "learned":
        vectors = {k: _plain(row) for k, row in search_vectors(experiment.model).items()}
        labels = groupings.by_kmeans([*vectors.values()], num_groups, config.seed)
    else:
        one, other = (template_gradients(experiment.model, g) for g in mean_gradients(experiment))
        cosines = agreements([one[name] + other[name] for name in one])
        agreement = _correlation(agreements([*one.values()]), agreements([*other.values()]))
        log.info("halves of the batches agree on which layers agree: correlation %.2f", agreement)
        vectors = {name: _plain(row) for name, row in zip(one, cosines, strict=True)}
        labels = groupings.by_agreement([*vectors.values()], num_groups)
    groups = groupings.named(dict(zip(vectors, labels, strict=True)), method)
    return Grouping(
        method, config.seed, num_groups, outcome.epochs, outcome.steps, outcome.wall_s,
        agreement, groups, vectors,
    )  # fmt: skip


def mean_gradients(experiment: Experiment) -> list[dict[str, Tensor]]:
    """Return each shared layer's weight gradient, summed over two disjoint sets of batches.

    Gradients are computed in training mode, in the run's precision and batch parts, which fit the
    memory; the sums are fp32. The sets alternate over `GRADIENT_BATCHES` batches of later epochs.
    """
    config, task, process = experiment.config, experiment.task, experiment.process
    assert experiment.allocation is not None
    model = sharing.materialize(copy.deepcopy(experiment.model)).train()
    names = [layer.name for layer in experiment.allocation.layers]
    parameters = dict(model.named_parameters())
    seeding.seed_torch(config.seed, "gradients")
    halves: list[dict[str, Tensor]] = [{}, {}]
    batches = experiment.endless_batches(search_epochs(config))
    precision = experiment.precision
    scale = FP16_SCALE if precision.scaler else 1.0
    wanted = [parameters[name] for name in names]
    for i, batch in enumerate(itertools.islice(batches, GRADIENT_BATCHES)):
        half, parts = halves[i % 2], batch.parts(config.trainer.grad_accum_steps)
        weights = task.part_weights(parts, process.world)
        for part, weight in zip(parts, weights, strict=True):
            with precision.autocast():
                loss, _ = task.loss(model, part)
            scaled = loss * (weight * scale)
            for name, found in zip(
                names, torch.autograd.grad(scaled, wanted, materialize_grads=True), strict=True
            ):
                gradient = found / scale
                if precision.scaler:  # ignore values that overflowed
                    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
                half[name] = half[name] + gradient if name in half else gradient
    for half in halves:
        for gradient in half.values():
            process.total(gradient)
    return halves


def agreements(vectors: list[Tensor]) -> Tensor:
    """Return the cosine of every two vectors; shorter ones are padded with zeros.

    A layer without a gradient agrees with itself only.
    """
    rows_LN = F.normalize(pad_sequence(vectors, batch_first=True).double(), dim=1)
    return (rows_LN @ rows_LN.T).fill_diagonal_(1.0)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Correlate two matrices' entries of all pairs of layers; 0 if one matrix is constant."""
    above = torch.ones_like(one, dtype=torch.bool).triu(diagonal=1)
    pairs = torch.stack([one[above], other[above]])
    return float(torch.corrcoef(pairs)[0, 1].nan_to_num(0.0)) if pairs.shape[1] > 1 else 0.0


def _plain(row: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in row.tolist()]
