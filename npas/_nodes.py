"""Hold the nodes `sharing` and `data` of the schema: who shares by which rules, and what data."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from npas.utils.checks import at_least, at_most, below, join

MOST_TEMPLATES = 1000  # of a layer: more is a slip, and would fill the memory
LONGEST = 1_000_000  # epochs, or images a batch: more is a slip, and may fill the memory

SEARCHED = ("learned", "gradient")  # groupings that a short training of their own has to find
MOST_PROCESSES = 1024  # of one machine: more is a slip
GROUPINGS = ("single", "type", "shape", "random", *SEARCHED)


@dataclass(frozen=True)
class SearchConfig:
    """Say how groups are found where sharing.groups is learned or gradient.

    The search trains one group inside the run's budget, but never more than the dense count, for
    `epochs` of its own (null: a tenth of the run's), in which it runs through the whole schedule.
    """

    epochs: int | None = None
    softmax: bool = False
    templates: int = 4

    def __post_init__(self) -> None:
        at_least("sharing.search.epochs", self.epochs, 1)
        at_most("sharing.search.epochs", self.epochs or 1, LONGEST)
        at_least("sharing.search.templates", self.templates, 2)


@dataclass(frozen=True)
class SharingConfig:
    """Hold the keywords of `npas.share`, and what training does with coefficients.

    `init` names trained weights to start from: a run, or dense weights that are projected into the
    bank. `templates` takes the place of a budget. `recurrence_weight` times the mean cosine of the
    coefficients of layers that mix the same templates is taken off the loss. Every `lsm_every`
    epochs, if not 0, the layer similarity matrix is logged.
    """

    generator: Literal["avg", "wavg", "emb"] = "wavg"
    upsampler: Literal["inter", "repeat", "mask", "wavg"] = "inter"
    groups: dict[str, str] | str = "single"
    num_groups: int | None = None
    max_templates: int = 8
    templates: int | Literal["layers"] | None = None
    coefficient_init: Literal["orthogonal", "sparse", "released"] = "orthogonal"
    recurrence_weight: float = 0.0
    lsm_every: int = 0
    include: list[str] | None = None
    exclude: list[str] | None = None
    allocator: Literal["npas", "reference"] = "npas"
    recompute: bool = False
    init: str | None = None
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if isinstance(self.groups, str) and self.groups not in GROUPINGS:
            raise ValueError(
                f"sharing.groups must be {join(GROUPINGS)}, a mapping of layer patterns to groups, "
                "as 'sharing.groups={stages.0.*: a}', or the folder of a run that found some; "
                f"{self.groups!r} is none of these"
            )
        counted = self.groups in ("random", *SEARCHED)
        if counted and self.num_groups is None:
            raise ValueError(
                f"sharing.groups={self.groups} needs to know how many: set sharing.num_groups"
            )
        if not counted and self.num_groups is not None:
            raise ValueError(
                f"sharing.num_groups={self.num_groups} is for sharing.groups=random, learned or "
                "gradient: set it to null"
            )
        if self.groups in SEARCHED and self.templates is not None:
            raise ValueError(
                f"sharing.templates={self.templates} needs groups of one shape, and "
                f"sharing.groups={self.groups} finds others: set a budget in place of templates"
            )
        if self.groups == "learned" and self.generator == "avg":
            raise ValueError(
                "sharing.groups=learned groups layers by their coefficients, and "
                "sharing.generator=avg has none: choose wavg or emb"
            )
        if self.init is not None and not self.init.strip():
            raise ValueError("sharing.init must not be empty: name a run or a file, or null")
        if self.init is not None:  # one path is spelled in many ways, and enters the hash
            object.__setattr__(self, "init", os.path.normpath(self.init))
        at_least("sharing.num_groups", self.num_groups, 1)
        at_least("sharing.max_templates", self.max_templates, 1)
        if isinstance(self.templates, int):
            at_least("sharing.templates", self.templates, 1)
            at_most("sharing.templates", self.templates, MOST_TEMPLATES)
        at_least("sharing.recurrence_weight", self.recurrence_weight, 0)
        at_least("sharing.lsm_every", self.lsm_every, 0)
        if self.coefficient_init == "sparse" and self.allocator == "reference":
            raise ValueError(
                "sharing.coefficient_init=sparse is not how sharing.allocator=reference starts: "
                "set sharing.coefficient_init=released or sharing.allocator=npas"
            )


@dataclass(frozen=True)
class SyntheticConfig:
    """Say how large a rehearsal on made-up data is: samples, and at most how long it trains."""

    train: int = 8
    test: int = 4
    epochs: int = 1
    batch_size: int = 2

    def __post_init__(self) -> None:
        for key in ("train", "test", "epochs", "batch_size"):
            at_least(f"data.synthetic.{key}", getattr(self, key), 1)
            at_most(f"data.synthetic.{key}", getattr(self, key), LONGEST)


@dataclass(frozen=True)
class DataConfig:
    """Say where the data lie and how much of them to train on; the task says what a split is.

    `source=synthetic` rehearses the experiment on data that are made up in the real set's format.
    Data that differ from the published checksums or counts, where these are known, are refused;
    `verify=warn` reads them with a warning, and their results stand beside no published figure.
    `workers` processes prepare the batches; 0: the training process does.
    """

    root: str = "data"
    source: Literal["real", "synthetic"] = "real"
    val_fraction: float | None = None
    download: bool = True
    verify: Literal["refuse", "warn"] = "refuse"
    workers: int = 0
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.val_fraction is not None:
            at_least("data.val_fraction", self.val_fraction, 0)
            below("data.val_fraction", self.val_fraction, 1)
        at_least("data.workers", self.workers, 0)
        at_most("data.workers", self.workers, MOST_PROCESSES)
