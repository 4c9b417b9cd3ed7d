"""The user's functions: share a dense network, save, load and summarize a shared one.

`share` plans an `Allocation` (`planning`), installs banks by it (`install`) and initializes them
(`init`, or `fitting` for trained weights). `apply` does the same with a finished allocation.
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from npas.sharing.budget import Budget, parse_budget
from npas.sharing.layers import find_tensors, usual_defaults
from npas.sharing.layout.allocation import Allocation
from npas.sharing.planning import (
    Groups,
    Names,
    check_types,
    fit_inside,
    plan,
    refuse_meta,
    refuse_packing,
)
from npas.sharing.runtime import audit, storage
from npas.sharing.runtime.init import (
    SAME_SPREAD,
    assign_scales,
    initialize,
    initialize_as_released,
    spread,
)
from npas.sharing.runtime.install import (
    find_planned,
    give_back_freed,
    install,
    require_unshared,
    restore,
    shared_weights,
)
from npas.sharing.runtime.loops import refuse_folded
from npas.sharing.torch_private import level_outside
from npas.sharing.trained import activations, fitting
from npas.sharing.trained.activations import Batch
from npas.sharing.trained.templates import fill_templates
from npas.utils.budget import BudgetLike
from npas.utils.checks import one_line, path_of, require
from npas.utils.packing import Packing
from npas.utils.printing import Shown

ALLOCATION_FILE = "allocation.json"
SHARED_FOLDER = "shared"  # in a directory for the hub


def share(
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
    recompute: bool = False,
    packing: Packing | None = None,
    init: str = "fresh",
    batches: Sequence[Batch] | None = None,
) -> nn.Module:
    """Share the parameters of `model` inside a budget, in place, and return it.

    - `budget`: all trainable parameters, as `0.1` or `"10%"` of the dense count, `2.0` or `"18M"`;
      or `"16MB"`, the bytes of the artifact that `write_artifact` makes with `packing`.
    - `templates`: K, instead of a budget (soft sharing); "layers" is the group's number of layers.
    - `generator`: avg, wavg, emb or mlp (coefficients per layer), channels (coefficients per output
      channel), tiles, basis, hash or factorized (see `structured`), or a registered one (see
      `schemes`).
      The default is hash, the best at equal budgets (docs/choosing.md), and wavg, as in the paper,
      from the dense count on, for a budget in bytes and with options about templates.
    - `coefficient_init`: orthogonal, sparse (one template per layer), released (one orthogonal
      matrix for all layers of one K; rows have norms below one if there are more layers than K),
      legendre or cosine (functions of depth among the layers of a group and shape). With
      `train_coefficients=False` they stay fixed and are no parameters.
    - `upsampler`: inter, repeat, mask or wavg. With `upsample_templates=n` above 1, inter resizes
      a mixture of n maps of half the bank.
    - `groups`: single, type, shape, place, "depth:2", random (with `num_groups`) or a mapping of
      name patterns to groups (see `groups.assign_groups`). `group_weights={group: weight}`
      multiplies a group's share of the budget, which is in proportion to its size.
    - `low_rank=r`: adds two matrices of rank r to each layer that shares with others.
    - `include`, `exclude`: glob patterns of parameter names, "@embeddings", "@first" or "@last".
    - `allocator="reference"`: allocates as the released code does, without exact budgets.
    - `init="fit"`: approximates the trained weights (see `fitting`), by a codebook or by bases,
      whichever is nearer; `generator` may be "codebook" or "basis" to choose one. `low_rank`
      corrects a codebook. With `templates` it only chooses values. With `batches` (each a tensor, a
      sequence of arguments or a mapping of keywords) it approximates the layers' outputs on them,
      which is much closer. `summary` reports the relative errors. `init="fresh"` drops the weights,
      keeps their standard deviations, and warns if they look trained.
    - `recompute`: generates weights again in backward instead of keeping them, which saves memory
      and takes time. Active saved-tensor hooks, e.g. of a checkpoint, take precedence.

    A weight is generated once per forward pass. Without gradients it is kept until something that
    it depends on changes; writes through `.data` are noticed at the next `train` or `eval` call.

    Raises ValueError for a network that is shared already, a budget below the smallest feasible one
    and options that do not fit together.
    """
    require_unshared(model)
    require("recompute", recompute, bool, "True or False")
    request = None if budget is None else parse_budget(budget)
    if request is not None:
        # No name here may hold the dense parameters: they are freed as soon as banks replace them.
        trained = sum(t.parameter.numel() * t.parameter.requires_grad for t in find_tensors(model))
        needed = request.size or request.allowed(trained)
        audit.refuse_huge(model, needed, f"budget={request.canonical}")
    options: dict[str, Any] = dict(
        generator=generator, upsampler=upsampler, groups=groups,
        num_groups=num_groups, group_weights=group_weights, max_templates=max_templates,
        templates=templates, coefficient_init=coefficient_init,
        train_coefficients=train_coefficients, upsample_templates=upsample_templates,
        low_rank=low_rank, include=include, exclude=exclude, allocator=allocator, seed=seed,
        packing=packing,
    )  # fmt: skip
    if init == "fit":
        check_types(options)
        refuse_packing(packing, request, init)
        return _share_fitted(model, request, options, recompute, batches)
    allocation = plan(model, request, init=init, batches=batches, **options)
    refuse_meta(model)
    if audit.looks_trained(model):
        warnings.warn(
            "npas.share drops the network's weights, and these look trained: a shared network is"
            " trained from scratch",
            stacklevel=3,
        )
    return apply(model, allocation, seed=seed, recompute=recompute)


def _share_fitted(
    model: nn.Module,
    request: Budget | None,
    options: dict[str, Any],
    recompute: bool,
    batches: Sequence[Batch] | None,
) -> nn.Module:
    """Share with `init="fit"`; see `share`."""
    refuse_meta(model)
    activations.refuse_batches(batches, "fit", options["templates"])
    if audit.looks_fresh(model):
        warnings.warn(
            "npas.share was asked to fit weights that look fresh: load trained ones first",
            stacklevel=4,
        )
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    expected = activations.outputs(model, batches[0]) if batches else None
    found = fit_inside(model, request, options, batches)
    if found is not None:
        audit.warn_of_optimizers(install(model, found.allocation, recompute))
        fitting.fill(model, found.values)
        give_back_freed()
    else:  # `templates` was given
        # With `avg` the layers of a group get one scale, so that their weights are equal and fold.
        tolerance = math.inf if options["generator"] == "avg" else SAME_SPREAD
        allocation = plan(model, request, **options)
        apply(model, allocation, seed=options["seed"], recompute=recompute, tolerance=tolerance)
        fill_templates(model, state)
    errors = fitting.weight_errors(model, state)
    if found is not None and batches and expected is not None:
        relative = _relative_error(model, batches[0], expected)
        errors = replace(errors, outputs=relative, reached=found.reached)
    shared_weights(model).errors = errors
    return model


def _relative_error(model: nn.Module, batch: Batch, expected: Tensor) -> float | None:
    """Return the error of a shared network's outputs, None if unknown; warn if it does not run."""
    try:
        found = activations.outputs(model, batch)
    except ValueError as error:
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {one_line(cause)}"
        warnings.warn(f"the fitted network cannot be run ({reason})", stacklevel=level_outside())
        return None
    if found.shape != expected.shape or not 0 < expected.norm() < math.inf:
        return None
    return float((found - expected).norm() / expected.norm())


def apply(
    model: nn.Module,
    allocation: Allocation,
    *,
    seed: int = 0,
    recompute: bool = False,
    tolerance: float = SAME_SPREAD,
) -> nn.Module:
    """Share a dense network by a finished allocation, in place, and return it.

    Raises ValueError if the allocation was made for another network, or does not fit into memory.
    """
    used = allocation.budget.used
    audit.refuse_huge(model, used, f"a plan of {used:,} parameters ({allocation.budget.asked})")
    tensors = find_planned(require_unshared(model), allocation.layers)
    spreads = {tensor.spec.name: spread(tensor.parameter.detach()) for tensor in tensors}
    del tensors  # so that no reference keeps the dense parameters alive
    allocation, deviations = assign_scales(allocation, spreads, tolerance)
    audit.warn_of_optimizers(install(model, allocation, recompute))
    give_back_freed()
    with usual_defaults():  # the same weights for a seed
        if allocation.scheme.allocator == "reference":
            initialize_as_released(model, allocation, int(seed))
        else:
            initialize(model, allocation, deviations, int(seed))
    return model


def allocation(model: nn.Module) -> Allocation:
    """Return the allocation of a shared network in its present state.

    Raises ValueError if it is not shared, or if a shared layer was removed.
    """
    return audit.follow(shared_weights(model)).allocation


def save(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a shared network as `model.safetensors`, every bank once, and `allocation.json`.

    Raises ValueError for a network that could not be loaded (a shared layer was removed, a bank is
    pruned, a part is wrapped), and RuntimeError if a generated weight was written to.
    """
    refuse_folded(model)
    shared = audit.follow(shared_weights(model))
    audit.refuse_unloadable(shared, "npas.save")
    storage.write(
        model, storage.make_folder(directory), ALLOCATION_FILE, shared.allocation.to_dict()
    )


def load(
    directory: str | os.PathLike[str], dense_model: nn.Module, *, recompute: bool = False
) -> nn.Module:
    """Turn the dense architecture, in place, into the network that `save` wrote; return it.

    `directory` may also be one of `npas-export format=hub`, which has the files in `shared/`.
    Raises ValueError, with the network left as it was, if files are missing, damaged, changed or
    inconsistent, or if the architecture is another one. Delete the "digest" of `allocation.json` to
    load an edited plan, of which only types and counts are checked.
    """
    path = path_of(directory) / ALLOCATION_FILE
    if not path.exists() and (below := path.parent / SHARED_FOLDER / ALLOCATION_FILE).exists():
        path = below
    stored = storage.read(path.parent, ALLOCATION_FILE, "npas.save")
    try:
        allocation = Allocation.from_dict(stored.description)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    dropped = restore(require_unshared(dense_model), allocation, stored, recompute)
    audit.warn_of_optimizers(dropped)
    give_back_freed()
    return dense_model


def summary(model: nn.Module) -> Shown:
    """Return a table of a shared network's layers, groups and budget as text.

    Notebooks show it as HTML tables. For a fitted network it includes the relative errors of the
    fit. Raises ValueError if a shared layer was removed.
    """
    table, errors = allocation(model).summary(), shared_weights(model).errors
    if errors is None:
        return table
    *grids, totals = table.parts
    return Shown(*grids, f"{totals}\n{errors.table()}")
