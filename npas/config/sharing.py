"""The `sharing` keys of a config."""

import os
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from npas.utils import plugins
from npas.utils.checks import Ranged, join, near, within

LONGEST = 1_000_000  # epochs, or images a batch: more is a typing error, and may fill the memory
MOST_TEMPLATES = 1000  # of a layer: more is a typing error, and would fill the memory
Generator = Literal[
    "avg", "wavg", "emb", "mlp", "channels", "tiles", "basis", "factorized", "hash", "codebook"
]  # fmt: skip
SEARCHED = ("learned", "gradient")  # groupings that need a search
GROUPINGS = ("single", "type", "shape", "random", *SEARCHED)
DENSE = "dense"  # the budget that trains the dense network and shares nothing
FIT = "fit"  # sharing.init=fit, fit:PATH or fit:dense fits the sharing to trained weights
BY_NAME = re.compile(r"place|depth:[1-9]\d{0,3}")  # groupings by the numbers in layers' names

FIT_GENERATORS = ("codebook", "basis")  # what a fit shares by, by default the nearer one
# The keys of `sharing` that a fit to trained weights chooses itself.
FITTED = (
    "generator", "upsampler", "groups", "num_groups", "group_weights", "max_templates",
    "coefficient_init", "train_coefficients", "upsample_templates", "low_rank", "allocator",
)  # fmt: skip


@dataclass(frozen=True)
class SearchConfig(Ranged, section="sharing.search."):
    """The search for groups of sharing.groups=learned or gradient.

    The search trains one group inside the run's budget, at most the dense count, for `epochs` of
    its own (null: a tenth of the run's), with the whole learning rate schedule.
    """

    epochs: Annotated[int | None, f"[1, {LONGEST}]"] = None
    softmax: bool = False
    templates: Annotated[int, "[2, inf)"] = 4


@dataclass(frozen=True)
class SharingConfig(Ranged, section="sharing."):
    """The keywords of `npas.share`, initial weights, the search for groups and regularization.

    `generator` may be a scheme of an installed package. `init` names a run with the same groups and
    sizes, whose banks are copied. `fit:PATH` fits the sharing to the weights of any run or file
    (`npas.share(model, budget, init="fit")`), `fit` to those of `model.pretrained`, `fit:dense` to
    those of the experiment's own run with budget=dense; its errors are those of the network's
    outputs on the first `fit_batches` training batches. A fit is by a codebook or by bases,
    whichever is nearer, or by the one that `generator` names; codebook is for fits only. With
    `low_rank` it is a codebook with corrections. `templates` replaces the budget. The budget is
    split over groups by size times `group_weights` (default 1). `recurrence_weight` times the mean
    cosine of the coefficients of layers that mix the same templates is subtracted from the loss. If
    not 0, the layer similarity matrix is logged every `lsm_every` epochs.
    """

    generator: Generator | str = "wavg"
    upsampler: Literal["inter", "repeat", "mask", "wavg"] = "inter"
    groups: dict[str, str] | str = "single"
    num_groups: Annotated[int | None, "[1, inf)"] = None
    group_weights: dict[str, float] | None = None
    max_templates: Annotated[int, "[1, inf)"] = 8
    templates: int | Literal["layers"] | None = None
    coefficient_init: Literal["orthogonal", "sparse", "released", "legendre", "cosine"] = (
        "orthogonal"
    )
    train_coefficients: bool = True
    upsample_templates: Annotated[int, "[1, inf)"] = 1
    low_rank: Annotated[int, "[0, inf)"] = 0
    recurrence_weight: Annotated[float, "[0, inf)"] = 0.0
    lsm_every: Annotated[int, "[0, inf)"] = 0
    include: list[str] | None = None
    exclude: list[str] | None = None
    allocator: Literal["npas", "reference"] = "npas"
    recompute: bool = False
    init: str | None = None
    fit_batches: Annotated[int, "[0, inf)"] = 0
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator not in (own := get_args(Generator)):
            others = plugins.names("scheme")
            if self.generator not in others:
                hint = f"{near(self.generator, [*own, *others])} (or install its package)"
                raise ValueError(f"sharing.generator: there is no {self.generator!r}; {hint}")
        if isinstance(self.groups, str) and not is_grouping(self.groups):
            raise ValueError(
                f"sharing.groups must be {join(GROUPINGS)}, place, depth:2, a mapping of layer "
                "patterns to groups, as 'sharing.groups={stages.0.*: a}', or the folder of a run "
                "that found some; "
                f"{self.groups!r} is none of these"
            )
        counted = self.groups in ("random", *SEARCHED)
        if counted and self.num_groups is None:
            raise ValueError(
                f"sharing.groups={self.groups} needs a number of groups: set sharing.num_groups"
            )
        if not counted and self.num_groups is not None:
            raise ValueError(
                f"sharing.num_groups={self.num_groups} is for sharing.groups=random, learned or "
                "gradient: set it to null"
            )
        if self.groups in SEARCHED and self.templates is not None:
            raise ValueError(
                f"sharing.templates={self.templates} needs groups of one shape, which "
                f"sharing.groups={self.groups} does not find: set a budget instead of templates"
            )
        if self.groups in SEARCHED and self.group_weights:
            raise ValueError(
                f"sharing.group_weights names groups, but sharing.groups={self.groups} has none"
                " yet: set sharing.groups=RUN, the folder of a run that found groups"
            )
        searched = ("wavg", "emb") if self.groups == "learned" else ("wavg", "emb", "avg")
        if self.groups in SEARCHED and self.generator not in searched:
            raise ValueError(
                f"sharing.groups={self.groups} searches with coefficients per layer, not with "
                f"sharing.generator={self.generator}: choose wavg or emb"
            )
        if self.init == f"{FIT}:":
            raise ValueError(
                f"sharing.init={self.init} names no path: write {FIT}:PATH, {FIT}:{DENSE} or {FIT}"
            )
        if self.weights is not None:  # the path is hashed: write it in one form
            path = os.path.normpath(self.weights)
            if path == FIT or (path == DENSE and path != self.weights):  # a folder of that name
                path = os.path.join(os.curdir, path)
            object.__setattr__(self, "init", f"{FIT}:{path}" if self.fits else path)
        if self.init is not None and self.groups in SEARCHED:
            raise ValueError(
                f"sharing.groups={self.groups} finds groups for fresh weights, but sharing.init="
                f"{self.init} names trained ones: set sharing.groups to single, or to the folder "
                "of a run that found groups"
            )
        fitted = self.fits and self.templates is None
        if self.generator == "codebook" and not fitted:
            raise ValueError(
                "sharing.generator=codebook takes its rows from trained weights: set"
                " sharing.init=fit and a budget, or another generator"
            )
        if self.recurrence_weight and (fitted or self.is_structured):
            cause = f"init={self.init}" if fitted else f"generator={self.generator}"
            raise ValueError(
                f"sharing.{cause} has no coefficients of shared templates for "
                "sharing.recurrence_weight: set it to 0, or "
                + ("set sharing.templates" if fitted else "choose sharing.generator=wavg or emb")
            )
        if isinstance(self.templates, int):
            within("sharing.templates", self.templates, f"[1, {MOST_TEMPLATES}]")

    @property
    def is_structured(self) -> bool:
        return self.generator not in ("avg", "wavg", "emb", "mlp")

    @property
    def fits(self) -> bool:
        return self.init is not None and self.init.partition(":")[0] == FIT

    @property
    def fit_generator(self) -> str | None:
        """Return what a fit is to share by, None for the nearer one and if there is no fit."""
        named = self.fits and self.templates is None and self.generator in FIT_GENERATORS
        return self.generator if named else None

    @property
    def left_to_fit(self) -> frozenset[str]:
        """Return the keys whose values a fit inside a budget chooses itself; {} without one."""
        if not self.fits or self.templates is not None:
            return frozenset()
        named = {"generator"} if self.fit_generator else set()
        return frozenset(FITTED) - named - ({"low_rank"} if self.generator != "basis" else set())

    @property
    def weights(self) -> str | None:
        """Return the path of the run or file to start from, if any; a fit's may be DENSE."""
        return (self.init or "").partition(":")[2] or None if self.fits else self.init


def is_grouping(text: str) -> bool:
    """Return whether a text is the name of a grouping."""
    return text in GROUPINGS or BY_NAME.fullmatch(text) is not None
