"""Compare a shared network with its allocation: what of its layers was moved, replaced or added.

A network's modules may be changed after it was shared. Layers that have other names then, and
parameters that came or went, are followed: the allocation is brought up to date. What has no
allocation that could be loaded is refused.
"""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from npas.sharing.allocation import Allocation
from npas.sharing.budget import BudgetReport, parse_budget
from npas.sharing.layers import (
    PREFIX,
    WRAPPERS,
    find_tensors,
    is_constant,
    is_parametrized,
    is_pruned,
    shared_names,
)
from npas.sharing.torch_private import level_outside
from npas.sharing.weights import SharedWeights
from npas.utils.budget import Budget

_UNNAMED = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""Parts of names that wrappers inside of a network add, and that its architecture does not have."""
_ORIGINAL = f"parametrizations.{PREFIX}"


def follow(shared: SharedWeights) -> SharedWeights:
    """Update names and counts of the allocation from the network; return `shared`.

    Raises ValueError, naming the layer, where a shared layer is gone from the network, or where the
    network holds layers of another shared network.
    """
    names = shared_layers(shared)
    allocation = shared.allocation
    parameters = dict(shared.root.named_parameters())
    for i, layer in enumerate(allocation.layers):
        own = parameters.get(layer.name)
        is_there = i in names if layer.templates else own is not None and own.shape == layer.shape
        if not is_there:
            raise ValueError(
                f"the network was shared with the layer {layer.name!r}, which is not in it any"
                " more: change layers before npas.share, leave the ones that you will change out of"
                " it with exclude, or npas.materialize the network"
            )
    others = count_others(shared)
    more = _total(others) - _total(shared.others)
    now = {layer.name: names[i][0] for i, layer in enumerate(allocation.layers) if i in names}
    if more or any(name != own for name, own in now.items()):
        renamed = allocation.map(lambda la: replace(la, name=now.get(la.name, la.name)))
        shared.replace(_recount(renamed, more))
        shared.others = others
    return shared


def refuse_unloadable(shared: SharedWeights, use: str) -> None:
    """ValueError where a shared tensor is pruned or parametrized, or a part of the network wrapped.

    `use` is what cannot be done with it.
    """
    for name in shared_names(shared.root):
        if is_pruned(shared.root, name):
            undo = "prune.remove"
        elif is_parametrized(shared.root, name):
            undo = "parametrize.remove_parametrizations"
        else:
            continue
        raise ValueError(
            f"{use} needs the plain parameter {name}: call torch.nn.utils.{undo}(model, {name!r})"
        )
    for name, module in shared.root.named_modules():
        kind = type(module).__name__
        if kind in WRAPPERS and type(module).__module__.startswith("torch."):
            raise ValueError(
                f"{use} needs plain modules, and {name!r} is wrapped by {WRAPPERS[kind]}: wrap the"
                " whole network, or put the module itself back first"
            )


def shared_layers(shared: SharedWeights) -> dict[int, list[str]]:
    """Return all names of every shared layer's weight, in the order of the network's modules.

    ValueError where the network holds layers of another one.
    """
    found: dict[int, list[str]] = {}
    for prefix, module in shared.root.named_modules(remove_duplicate=False):
        attachment = module.__dict__.get("_npas")
        if attachment is None:
            continue
        if attachment.shared is not shared:
            raise ValueError(
                f"the network's module {prefix!r} reads the bank of another network, which is not"
                " among this one's parameters: npas.materialize that network before you take parts"
                " or copies of it"
            )
        for attribute, index in attachment.layers.items():
            name = f"{prefix}.{attribute}".lstrip(".")
            found.setdefault(index, []).append(_without_wrappers(name))
    return found


def count_others(shared: SharedWeights) -> dict[str, tuple[int, bool]]:
    """Return the size of every parameter that is not shared, and whether it counts.

    Trainable ones do; one that is frozen or not after sharing counts as it did before.
    """
    ordinary = {layer.name for layer in shared.allocation.layers if not layer.templates}
    found = {}
    for name, parameter in shared.root.named_parameters():
        name = _without_wrappers(name)
        if name not in ordinary and not name.startswith((PREFIX, _ORIGINAL)):
            size, counts = shared.others.get(name, (-1, False))
            found[name] = parameter.numel(), counts if size >= 0 else parameter.requires_grad
    return found


def _without_wrappers(name: str) -> str:
    for part in _UNNAMED:
        name = name.replace(part, "")
    return name


def _total(others: dict[str, tuple[int, bool]]) -> int:
    return sum(size for size, counts in others.values() if counts)


def _recount(allocation: Allocation, more: int) -> Allocation:
    """Return the allocation with so many more parameters that are not shared."""
    budget = allocation.budget
    dense, used = budget.dense + more, budget.used + more
    try:
        allowed = parse_budget(budget.asked).allowed(dense)
    except ValueError:  # templates or bytes were asked for, not parameters
        allowed = budget.allowed + more
    return replace(
        allocation,
        budget=BudgetReport(budget.asked, dense, allowed, used),
        unshared=allocation.unshared + more,
    )


def warn_of_optimizers(dropped: Mapping[str, weakref.ref[nn.Parameter]]) -> None:
    """Warn of each optimizer that holds parameters which the network lost by sharing.

    It would go on with parameters that nothing reads. Where none of them is alive, as is usual,
    this costs nothing.
    """
    if all(parameter() is None for parameter in dropped.values()):
        return
    gc.collect()
    names = {id(ref()): name for name, ref in dropped.items() if ref() is not None}
    for holder in gc.get_objects() if names else ():
        if issubclass(type(holder), torch.optim.Optimizer):
            held = [p for group in holder.param_groups for p in group["params"]]
            lost = [names[id(p)] for p in held if id(p) in names]
            if lost:
                warnings.warn(
                    f"{type(holder).__name__} was made before npas.share and holds {len(lost)}"
                    f" parameters that are no longer the network's ({lost[0]}, ...): make it after"
                    " sharing",
                    stacklevel=level_outside(),
                )


def looks_trained(model: nn.Module) -> bool:
    """Guess from norms: moved running statistics, or weights that are no longer all equal.

    A network without norms gives no sign.
    """
    return not all(map(is_constant, _of_norms(model)))


def looks_fresh(model: nn.Module) -> bool:
    """Guess from norms, too: there are some, and none has moved."""
    found = _of_norms(model)
    return bool(found) and all(map(is_constant, found))


def _of_norms(model: nn.Module) -> list[Tensor]:
    """Return the running means and the weights of all norms, as far as they have values."""
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    found = (getattr(m, name, None) for m in norms for name in ("running_mean", "weight"))
    return [tensor for tensor in found if isinstance(tensor, Tensor) and not tensor.is_meta]


def refuse_huge(model: nn.Module, budget: Budget) -> None:
    """Raise ValueError if this machine's memory cannot hold the parameters that a budget allows."""
    trained = [t.parameter for t in find_tensors(model) if t.parameter.requires_grad]
    largest = max((parameter.element_size() for parameter in trained), default=4)
    dense = sum(parameter.numel() for parameter in trained)
    # Of bytes about as many parameters as bytes.
    needed = (budget.size or budget.allowed(dense)) * largest
    if hasattr(os, "sysconf") and needed > (there := _memory()):
        raise ValueError(
            f"budget={budget.canonical} takes {needed / 2**30:,.1f} GiB for its parameters alone,"
            f" and this machine has {there / 2**30:,.1f} GiB: ask for a smaller budget"
        )


def _memory() -> int:
    """Return this machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
