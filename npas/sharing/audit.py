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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import CellType, FrameType, FunctionType
from typing import Any

from torch import nn

from npas.sharing.allocation import Allocation, LayerAllocation
from npas.sharing.budget import BudgetReport, parse_budget
from npas.sharing.generation import Reading
from npas.sharing.layers import PREFIX, WRAPPERS, is_parametrized, is_pruned, shared_names
from npas.sharing.torch_private import caller, frames
from npas.sharing.weights import SharedWeights

_UNNAMED = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""Parts of names that wrappers inside of a network add, and that its architecture does not have."""
ORIGINAL = f"parametrizations.{PREFIX}"


def follow(shared: SharedWeights) -> SharedWeights:
    """Update names and counts of the allocation from the network; return `shared`.

    Raises ValueError, naming the layer, where a shared layer is gone from the network, or where the
    network holds layers of another shared network.
    """
    names = shared_layers(shared)
    layers = shared.allocation.layers
    renamed = {i: own[0] for i, own in names.items() if layers[i].name != own[0]}
    sizes = dict(shared.root.named_parameters())
    for i, layer in enumerate(layers):
        own = sizes.get(layer.name) if not layer.templates else None
        is_there = i in names if layer.templates else own is not None and own.shape == layer.shape
        if not is_there:
            raise ValueError(
                f"the network was shared with the layer {layer.name!r}, which is not in it any"
                " more: change layers before npas.share, leave the ones that you will change out of"
                " it with exclude, or npas.materialize the network"
            )
    others, before = count_others(shared), _total(shared.others)
    if renamed or _total(others) != before:
        allocation = _rename(shared.allocation, renamed)
        shared.allocation = _recount(allocation, _total(others) - before)
        shared.reading = Reading(shared.allocation, shared.reading.low)
        shared.others = others
    return shared


def refuse_unloadable(shared: SharedWeights, use: str) -> None:
    """ValueError where a shared tensor is pruned or parametrized, or a part of the network wrapped.

    `use` is what cannot be done with it.
    """
    for name in shared_names(shared.root):
        if is_pruned(shared.root, name):
            undo = f"torch.nn.utils.prune.remove(model, {name!r})"
        elif is_parametrized(shared.root, name):
            undo = f"torch.nn.utils.parametrize.remove_parametrizations(model, {name!r})"
        else:
            continue
        raise ValueError(f"{use} needs the plain parameter {name}: call {undo} first")
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
        is_shared = name.startswith(PREFIX) or (
            name.startswith(ORIGINAL) and ".original" in name.removeprefix(ORIGINAL)
        )
        if not is_shared and name not in ordinary:
            size, counts = shared.others.get(name, (-1, False))
            found[name] = parameter.numel(), counts if size >= 0 else parameter.requires_grad
    return found


def _without_wrappers(name: str) -> str:
    for part in _UNNAMED:
        name = name.replace(part, "")
    return name


def _total(others: dict[str, tuple[int, bool]]) -> int:
    return sum(size for size, counts in others.values() if counts)


def _rename(allocation: Allocation, names: dict[int, str]) -> Allocation:
    places: Iterator[tuple[int, LayerAllocation]] = enumerate(allocation.layers)

    def renamed(count: int) -> tuple[LayerAllocation, ...]:
        chosen = (next(places) for _ in range(count))
        return tuple(replace(layer, name=names.get(i, layer.name)) for i, layer in chosen)

    groups = (replace(group, layers=renamed(len(group.layers))) for group in allocation.groups)
    return replace(allocation, groups=tuple(groups))


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


Dropped = Mapping[str, "weakref.ref[nn.Parameter]"]

_CONTAINERS = (list, tuple, dict, set, frozenset, CellType)
_DEEPEST = 6  # parameter <- list <- group <- list of groups <- attributes <- optimizer
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def warn_of_holders(dropped: Dropped) -> None:
    """Warn of each optimizer, list or function that holds parameters which the network lost.

    Such a thing would go on with parameters that nothing trains or reads. Where none of them is
    alive, as is usual, this costs nothing. What only autograd's graph or a variable holds is left
    out: nothing can come of it.
    """
    if all(parameter() is None for parameter in dropped.values()):
        return
    gc.collect()
    held = {id(ref()): name for name, ref in dropped.items() if ref() is not None}
    found = _find_holders(
        [found for found in (ref() for ref in dropped.values()) if found is not None]
    )
    for holder, ids in found.items():
        names = [name for key, name in held.items() if key in ids]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        count = "1 parameter that is" if len(names) == 1 else f"{len(names)} parameters that are"
        warnings.warn(
            f"{holder} was made before npas.share and holds {count} no longer the network's"
            f" ({shown}): make it after sharing",
            stacklevel=_level_outside(),
        )


def _find_holders(parameters: Sequence[nn.Parameter]) -> dict[str, set[int]]:
    """Return the ids of the parameters that each holder has, by what the holder is called."""
    found: dict[str, set[int]] = {}
    reached: dict[int, set[int]] = {id(p): {id(p)} for p in parameters}
    level: Sequence[Any] = parameters
    ours = {id(level), id(found), id(reached), id(parameters)}
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        if not level:
            break
        referrers = gc.get_referrers(*level)
        ours |= {id(referrers), id(level)}
        next_level: list[Any] = []
        ours.add(id(next_level))
        climbed: set[int] = set()
        for referrer in referrers:
            if id(referrer) in ours or isinstance(referrer, FrameType):
                continue
            below = [id(x) for x in gc.get_referents(referrer) if id(x) in reached]
            if id(referrer) in seen:  # reached by a shorter way, as an optimizer by its state
                climbed.update(below)
                continue
            ids = set().union(*(reached[key] for key in below))
            if isinstance(referrer, dict) and "__builtins__" in referrer:
                continue  # the variables of a module
            climbed.update(below)
            if isinstance(referrer, _CONTAINERS):
                reached.setdefault(id(referrer), set()).update(ids)
                next_level.append(referrer)
            else:
                found.setdefault(_name(referrer), set()).update(ids)
        if level is not parameters:
            _name_containers(found, reached, (x for x in level if id(x) not in climbed))
        seen |= {id(x) for x in next_level}
        level = next_level
    return found


def _name_containers(
    found: dict[str, set[int]], reached: Mapping[int, set[int]], alone: Iterable[Any]
) -> None:
    """Add the containers that only a variable refers to."""
    for container in alone:
        name = f"a {type(container).__name__}"
        found.setdefault(name, set()).update(reached[id(container)])


def _name(holder: object) -> str:
    if isinstance(holder, FunctionType):
        return f"the function {holder.__qualname__}"
    return type(holder).__name__


def _level_outside() -> int:
    """Return the `stacklevel` with which a caller's warning names the line that called npas."""
    outside = (not f.f_code.co_filename.startswith(_PACKAGE) for f in frames(caller(1)))
    return next((level for level, is_outside in enumerate(outside, 1) if is_outside), 1)
