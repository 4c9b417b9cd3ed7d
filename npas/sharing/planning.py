"""Plan how a network is shared: check the options, resolve defaults, make an `Allocation`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torch import nn

from npas.sharing.budget import Budget, count_parameters, parse_budget
from npas.sharing.compression import pricing
from npas.sharing.generators import schemes
from npas.sharing.generators.codebook import CODEBOOK
from npas.sharing.generators.coefficients import FIXED, OF_DEPTH, STARTS
from npas.sharing.generators.upsample import UPSAMPLERS
from npas.sharing.layers import find_layers, find_tensors, usual_defaults
from npas.sharing.layout.allocation import ALLOCATORS, Allocation, Scheme
from npas.sharing.layout.allocator import allocate, allocate_templates
from npas.sharing.layout.groups import assign_groups
from npas.sharing.layout.released_layout import allocate_reference
from npas.sharing.layout.structured import check_generator
from npas.sharing.runtime.install import require_unshared
from npas.sharing.trained import activations, fitting
from npas.sharing.trained.activations import Batch
from npas.utils.budget import BudgetLike
from npas.utils.checks import near, require
from npas.utils.packing import Packing

Names = str | Iterable[str] | None
Groups = str | Mapping[str, str | int]


def plan(
    model: nn.Module,
    budget: BudgetLike | None = None,
    *,
    generator: str | None = None,
    upsampler: str = "inter",
    groups: Groups = "single",
    num_groups: int | None = None,
    group_weights: Mapping[str, float] | None = None,
    max_templates: int = 8,
    templates: int | str | None = None,
    coefficient_init: str = "orthogonal",
    train_coefficients: bool = True,
    upsample_templates: int = 1,
    low_rank: int = 0,
    include: Names = None,
    exclude: Names = None,
    allocator: str = "npas",
    seed: int = 0,
    packing: Packing | None = None,
    init: str = "fresh",
    batches: Sequence[Batch] | None = None,
) -> Allocation:
    """Return the allocation that `share` would use for the same arguments.

    The network is not changed. The layers' fixed scales are missing, since `share` measures them.
    """
    activations.refuse_batches(batches, init, templates)
    options: dict[str, Any] = dict(
        generator=generator, upsampler=upsampler, groups=groups, num_groups=num_groups,
        group_weights=group_weights, max_templates=max_templates, templates=templates,
        coefficient_init=coefficient_init, train_coefficients=train_coefficients,
        upsample_templates=upsample_templates, low_rank=low_rank, include=include, exclude=exclude,
        allocator=allocator,
    )  # fmt: skip
    check_types(options | {"seed": seed, "packing": packing})
    # numpy's integers would be in the plan, which JSON cannot hold.
    max_templates, upsample_templates, low_rank, seed = map(
        int, (max_templates, upsample_templates, low_rank, seed)
    )
    templates = int(templates) if isinstance(templates, Integral) else templates
    require_unshared(model)
    request = None if budget is None else parse_budget(budget)
    refuse_packing(packing, request, init)
    if init == "fit" and (found := fit_inside(model, request, options, batches)):
        return found.allocation
    specs = [layer.spec for layer in find_layers(model, include, exclude)]
    dense = count_parameters(model)
    if request is not None and (request.size or request.allowed(dense)) > MOST * dense:
        raise ValueError(
            f"budget={request.canonical} is more than {MOST:,} times the network's {dense:,}"
            " parameters: ask for a smaller budget"
        )
    if generator is None:
        generator = _default_generator(request, dense, options)
    if init not in ("fresh", "fit"):
        raise ValueError(f"init={init!r} is unknown: choose fresh, fit")
    check_options(options | {"generator": generator})
    if request is not None and templates is not None:
        raise ValueError("budget and templates exclude each other: templates fixes the count")
    group_of = assign_groups(specs, groups, num_groups, seed)
    if group_weights:
        _check_weights(group_weights, set(group_of.values()), templates, allocator)
        group_weights = {str(name): float(weight) for name, weight in group_weights.items()}
    mixing = generator if train_coefficients else FIXED
    scheme = Scheme(
        mixing, upsampler, max_templates, allocator, coefficient_init, low_rank, upsample_templates
    )
    if templates is not None:
        return allocate_templates(specs, group_of, templates, dense, scheme)
    if request is None:
        raise ValueError(
            "the number of parameters is missing: give a budget (0.1, 18M) or templates"
        )
    if request.size is not None:
        if allocator == "reference":
            raise ValueError(
                f"budget={request.canonical} bounds bytes, and allocator='reference' banks alone:"
                " use allocator='npas'"
            )
        return pricing.fit(
            model, request, specs, group_of, scheme, packing or Packing(), group_weights
        )
    if allocator == "reference":
        wrap_after_k = groups in ("type", "shape")
        return allocate_reference(specs, group_of, request, dense, scheme, wrap_after_k)
    return allocate(specs, group_of, request, dense, scheme, group_weights)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError if an option of `plan` is invalid, or two exclude each other.

    It needs no network, so that the jobs of a sweep are checked before the first is trained.
    """
    options = {**OF_FRESH, "templates": None, **options}
    for option, choices in (
        ("generator", (*schemes.choices(), CODEBOOK)),
        ("upsampler", UPSAMPLERS),
        ("allocator", ALLOCATORS),
        ("coefficient_init", (*STARTS, *OF_DEPTH)),
    ):
        if (value := options[option]) not in choices:
            raise ValueError(f"{option}={value!r} is unknown: choose {', '.join(choices)}")
    generator, start = options["generator"], options["coefficient_init"]
    if generator == CODEBOOK:
        raise ValueError(
            f"generator={generator!r} takes its rows from trained weights: give init='fit' and a"
            " budget, without templates, or leave generator out"
        )
    low_rank, trains = options["low_rank"], options["train_coefficients"]
    if not trains and generator != "wavg":
        raise ValueError(
            f"train_coefficients=False needs generator='wavg', not {generator!r}: only its"
            " coefficients can be fixed"
        )
    if not trains and start == "sparse":
        raise ValueError(
            "train_coefficients=False with coefficient_init='sparse' would leave all but one"
            " template of each layer unused: set one of them otherwise"
        )
    check_generator(generator, start, options)
    for option in ("max_templates", "templates", "upsample_templates"):
        count = options[option]
        if isinstance(count, str) and count != "layers":
            raise ValueError(f"{option}={count!r} is unknown: give a number, or 'layers'")
        most = math.inf if option == "max_templates" else MOST
        if isinstance(count, Integral) and not 1 <= int(count) <= most:
            numbers = f"from 1 to {most:,}" if option != "max_templates" else "from 1 on"
            raise ValueError(f"{option}={count} is out of range: give a number {numbers}")
    fixed = generator != "wavg" or not trains or start in ("sparse", *OF_DEPTH)
    others = low_rank or options["upsample_templates"] > 1
    if options["allocator"] == "reference" and options["templates"] is None and (fixed or others):
        raise ValueError(
            "allocator='reference' mixes with generator='wavg' and"
            " coefficient_init='released' only, which train, resizes one map and corrects nothing"
        )


def check_types(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of another type, a negative rank and a seed over 64 bits."""
    none, integers = type(None), ("seed", "max_templates", "upsample_templates", "low_rank")
    for option, kinds, what in (
        *((name, Integral, "an integer") for name in integers),
        ("num_groups", (Integral, none), "an integer or None"),
        ("templates", (Integral, str, none), "an integer, 'layers' or None"),
        ("train_coefficients", bool, "True or False"),
        ("packing", (Packing, none), "an npas.Packing or None"),
        ("groups", (str, Mapping), "a name or a mapping of patterns to groups"),
    ):
        require(option, options[option], kinds, what)
    if (rank := options["low_rank"]) < 0:
        raise ValueError(f"low_rank={rank} is out of range: give a rank, or 0 for none")
    if not -(2**63) <= options["seed"] < 2**63:
        raise ValueError(f"seed={options['seed']} must fit in 64 bits")


def refuse_packing(packing: Packing | None, request: Budget | None, init: str) -> None:
    """Raise ValueError if a packing is given without a budget in bytes."""
    if packing is not None and (request is None or request.size is None):
        remedy = "" if init == "fit" else "give one (budget='16MB'), or "
        raise ValueError(
            f"packing is of budgets in bytes: {remedy}leave packing out, and give its settings to"
            " npas.write_artifact"
        )


def _check_weights(
    weights: Mapping[str, float], groups: set[str], templates: int | str | None, allocator: str
) -> None:
    """Raise ValueError for weights out of range or of unknown groups."""
    if templates is not None or allocator == "reference":
        raise ValueError(
            "group_weights split a budget: leave them out with templates or allocator='reference'"
        )
    if not isinstance(weights, Mapping):
        raise ValueError(f"group_weights must be a mapping of groups to numbers, not {weights!r}")
    for name, weight in weights.items():
        if str(name) not in groups:
            raise ValueError(
                f"group_weights: there is no group {name!r}; {near(str(name), [*groups])}"
            )
        if not isinstance(weight, Real) or not 0.001 <= weight <= 1000:
            raise ValueError(f"group_weights: {name} must be from 0.001 to 1000, not {weight}")


MOST = 10_000
"""The most templates, and the most that a budget may be of the dense count: plans list every
template's position."""

OF_FRESH = {
    "generator": None,
    "upsampler": "inter",
    "groups": "single",
    "num_groups": None,
    "group_weights": None,
    "max_templates": 8,
    "coefficient_init": "orthogonal",
    "train_coefficients": True,
    "upsample_templates": 1,
    "low_rank": 0,
    "allocator": "npas",
}
"""The options that `init="fit"` chooses itself inside a budget, with their defaults."""


def _default_generator(request: Budget | None, dense: int, options: Mapping[str, Any]) -> str:
    """Return hash for a parameter budget below the dense count, without options about templates."""
    asked = {key for key, default in OF_FRESH.items() if options[key] != default}
    about_templates = asked - {"groups", "num_groups", "group_weights", "low_rank"}
    if request is None or request.size is not None or about_templates or options["templates"]:
        return "wavg"
    return "hash" if request.allowed(dense) < dense else "wavg"


def fit_inside(
    model: nn.Module,
    request: Budget | None,
    options: Mapping[str, Any],
    batches: Sequence[Batch] | None = None,
) -> fitting.Fit | None:
    """Fit a network inside a budget; return None without a budget or with `templates`."""
    if options["templates"] is not None or request is None:
        return None
    generator = options["generator"]
    chosen = generator if generator in (CODEBOOK, fitting.BASIS) else None
    given = {"generator"} if chosen else set()
    if generator != fitting.BASIS:
        given.add("low_rank")
    for option, default in OF_FRESH.items():
        if options[option] != default and option not in given:
            names = f"give {CODEBOOK!r} or {fitting.BASIS!r}, " if option == "generator" else ""
            raise ValueError(
                f"{option} does not apply to init='fit', which chooses it from the weights: leave"
                f" {option} out, {names}or give templates in place of a budget"
            )
    layers = find_layers(model, options["include"], options["exclude"])
    refuse_meta(model)
    if request.size is not None:
        raise ValueError(
            f"budget={request.canonical} bounds bytes, and init='fit' counts parameters: give a"
            " fraction or a count (0.1, 18M)"
        )
    roots = activations.roots(model, layers, batches) if batches else None
    with usual_defaults():
        return fitting.fit(
            layers, request, count_parameters(model), roots, chosen, int(options["low_rank"])
        )


def refuse_meta(model: nn.Module) -> None:
    """Raise ValueError if a parameter is on the meta device, or has no shape yet."""
    if any(tensor.parameter.is_meta for tensor in find_tensors(model)):
        raise ValueError("the network is on the meta device, without values: build it on the CPU")
