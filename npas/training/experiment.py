"""Build the task and the shared network of a config."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from npas import models, sharing, tasks
from npas.config import DENSE, Config, load_config, search_epochs
from npas.models import InputSpec
from npas.sharing import Allocation, api
from npas.sharing.budget import spell_count
from npas.sharing.layout.structured import makes_whole
from npas.sharing.runtime import install
from npas.sharing.search import plan_search
from npas.sharing.trained import pruning
from npas.sharing.trained.layer_similarity import recurrence_reward
from npas.tasks import base
from npas.tasks.base import Batch, Learner, Task
from npas.training import seeding
from npas.training.distributed import Process, this_process
from npas.training.grouping import SEARCH, TRAIN, Grouping
from npas.training.precision import Precision

# Keys of `sharing` that do not change the plan.
OF_TRAINING = {"search", "recompute", "recurrence_weight", "lsm_every", "init", "fit_batches"}


@dataclasses.dataclass
class Experiment:
    """One run's parts, ready to train or to load a checkpoint into.

    In stage "search", `model` is the network that groups are learned from.
    """

    config: Config
    process: Process
    task: Task
    model: nn.Module
    allocation: Allocation | None  # None for a dense network
    stage: str = TRAIN
    grouping: Grouping | None = None  # the search's result
    # The sha256 of the "weights" that `sharing.init` gave, once read, and what they "became".
    init: dict[str, str] | None = None
    unfinished: str | None = None  # how far an unfinished run was trained
    distilled: Learner | None = None  # the task with a teacher
    teacher: str | None = None  # a digest of the teacher's weights

    @property
    def learner(self) -> Learner:
        """What computes the training loss: the task, or the task with a teacher."""
        return self.distilled or self.task

    @functools.cached_property
    def precision(self) -> Precision:
        """The compute dtype. Raises ValueError if the device cannot compute in it."""
        return Precision(self.config.precision, self.process.device)

    @property
    def epochs(self) -> int:
        """The epochs of this stage; 0 only evaluates."""
        if self.stage == SEARCH:
            return search_epochs(self.config)
        return self.config.trained_epochs

    @property
    def recurrence_weight(self) -> float:
        """The weight of the recurrence reward, 0 in a search."""
        shares = self.allocation is not None and self.stage == TRAIN
        return self.config.sharing.recurrence_weight if shares else 0.0

    def batches(self, epoch: int, first_step: int = 0, workers: int = 0) -> Iterator[Batch]:
        """Iterate over this process's parts of an epoch's batches, on its device."""
        return base.batches(
            self.task, epoch, self.config.batch_size, first_step=first_step, workers=workers,
            rank=self.process.rank, world=self.process.world, device=self.process.device,
        )  # fmt: skip

    def endless_batches(self, epoch: int) -> Iterator[Batch]:
        """Iterate over the batches of an epoch and all later ones."""
        return itertools.chain.from_iterable(map(self.batches, itertools.count(epoch)))

    def batch_arithmetic(self) -> str:
        """Return how a batch is split, as "128 = 4 ranks x 2 parts x 16"."""
        size, parts = self.config.batch_size, self.config.trainer.grad_accum_steps
        counts = {"ranks": (ranks := self.process.world), "parts": parts}
        factors = [f"{n} {what}" for what, n in counts.items() if n > 1]
        rest = str(size // ranks // parts)
        return f"{size} = {' x '.join([*factors, rest])}" if factors else rest


def check(raw: Mapping[str, Any]) -> Config:
    """Check a complete config with its families' keys. Raises ValueError."""
    quick = load_config(raw)
    family = tasks.family(quick.task["family"])
    config = load_config(raw, models.family(quick.model["family"]).Config, family.Config)
    if (settle := getattr(family, "settle", None)) is not None:  # settings read from the data
        config = dataclasses.replace(config, task=settle(config.task, config.data))
    return config


def build_task(config: Config, device: torch.device | None = None) -> Task:
    """Build a config's task, by default on the CPU; reads no data."""
    kind: type[Task] = tasks.family(config.task.family).Task
    device = device or torch.device("cpu")
    return kind(config.task, config.data, seed=config.seed, device=device)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, on GPUs with channels last."""
    model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model


def build(
    config: Config, grouping: Grouping | None = None, task: Task | None = None,
    stored: Mapping[str, Any] | None = None,
) -> Experiment:  # fmt: skip
    """Build task, network and allocation from a checked config; reads no data.

    If groups are learned and no grouping is given, the experiment is the search. A `task` of an
    earlier stage saves reading the data again. For `stored`, see `build_network`.
    """
    process = this_process(config.trainer)
    base.rank_share(config.batch_size, process.world, config.trainer.grad_accum_steps)
    seeding.set_determinism(config.deterministic)
    seeding.set_tf32(config.trainer.tf32, process.device)
    task = task or build_task(config, process.device)
    stage = SEARCH if search_epochs(config) and grouping is None else TRAIN
    model = build_network(config, task.spec, grouping, stored)
    allocation = api.allocation(model) if install.is_shared(model) else None
    to_device(model, process.device)
    return Experiment(config, process, task, model, allocation, stage, grouping)


def build_network(
    config: Config, spec: InputSpec, grouping: Grouping | None = None,
    stored: Mapping[str, Any] | None = None,
) -> nn.Module:  # fmt: skip
    """Build the network for a task's inputs and share it, for the search if groups are unknown.

    It is built on the CPU, so that a seed gives the same weights on every device. `stored`, a
    checkpoint's state, gives that checkpoint's network: shared by the stored allocation, with no
    pretrained weights read. Raises ValueError for an infeasible budget.
    """
    stored = stored or {}
    seeding.seed_torch(config.seed, "init")
    model = build_dense(config, spec, stored.get("architecture"))
    if stored.get("allocation"):
        plan = Allocation.from_dict(stored["allocation"])
        install.install(model, plan, config.sharing.recompute)
        return model
    if search_epochs(config) and grouping is None:
        return _share_for_search(config, model)
    if config.budget == DENSE or config.sharing.fits:  # `initial.start` shares a fit
        return model
    keywords = plan_keywords(config, grouping) | {"recompute": config.sharing.recompute}
    model = api.share(model, config.budget, **keywords)
    if weight := config.sharing.recurrence_weight:
        try:
            recurrence_reward(model)
        except ValueError as error:
            raise ValueError(f"sharing.recurrence_weight={weight} has no use: {error}") from None
    return model


def build_dense(
    config: Config, spec: InputSpec, architecture: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the dense network for a task's inputs, with masks on filters that will be pruned."""
    model = models.build(config.model, spec, architecture)
    if (method := config.pruning.method) is not None:
        try:
            pruning.mask_filters(model, models.filters_of(config.model, model))
            pruning.counts(model, config.pruning.amount)
        except ValueError as error:
            raise ValueError(f"pruning.method={method}: {error}") from None
    return model


def check_parts(experiment: Experiment, grad_accum_steps: int | None = None) -> None:
    """Raise ValueError if the task's loss cannot be computed on parts of a batch of this size."""
    config, world = experiment.config, experiment.process.world
    grad_accum_steps = grad_accum_steps or config.trainer.grad_accum_steps
    size = base.rank_share(config.batch_size, world, grad_accum_steps)
    experiment.task.check_parts(size, world * grad_accum_steps)


def plan_keywords(config: Config, grouping: Grouping | None = None) -> dict[str, Any]:
    """Return a config's keyword arguments of `npas.plan`."""
    keys = {key.name for key in dataclasses.fields(config.sharing)} - OF_TRAINING
    keys -= config.sharing.left_to_fit
    if makes_whole(config.sharing.generator):  # npas.plan refuses what a config only warns of
        keys -= {"upsampler", "max_templates"}
    keywords = {key: getattr(config.sharing, key) for key in keys} | {"seed": config.seed}
    if config.cap is not None:
        keywords["packing"] = config.artifact
    if grouping is not None:
        keywords |= {"groups": grouping.groups, "num_groups": None}
    return keywords


def _share_for_search(config: Config, model: nn.Module) -> nn.Module:
    """Share a network in one group for the search. Raises ValueError for an infeasible budget."""
    assert config.budget is not None
    settings = config.sharing
    # Plan random groups first, so that an infeasible budget is refused before the search and not
    # after it. The released layout is stricter: random groups say nothing about learned ones.
    proxy: dict[str, Any] = {"groups": "random"}
    if settings.allocator == "reference":
        proxy = {"groups": "single", "num_groups": None}
    drawn = sharing.plan(model, config.budget, **plan_keywords(config) | proxy)
    if settings.num_groups is not None and settings.num_groups > len(drawn.layers):
        raise ValueError(
            f"sharing.num_groups={settings.num_groups} is more than the {len(drawn.layers)}"
            " shareable layers of the network"
        )
    budget = config.budget if config.cap is None else spell_count(drawn.budget.allowed)
    plan = plan_search(
        model, budget, generator=settings.generator, include=settings.include,
        exclude=settings.exclude, allocator=settings.allocator, softmax=settings.search.softmax,
        templates=settings.search.templates,
    )  # fmt: skip
    return api.apply(model, plan, seed=config.seed, recompute=settings.recompute)
