"""Check a shared network against its allocation after its modules were changed.

`follow` updates the allocation's names and counts for renamed layers and for added or removed
parameters. Changes that no loadable allocation describes are refused with a ValueError.
"""

import gc
import os
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from npas.sharing.budget import BudgetReport, parse_budget
from npas.sharing.layers import (
    PREFIX,
    WRAPPERS,
    find_tensors,
    is_constant,
    refuse_computed,
)
from npas.sharing.layout.allocation import Allocation
from npas.sharing.runtime.weights import SharedWeights
from npas.sharing.torch_private import level_outside

_UNNAMED = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""Name components that wrappers inside a network add."""


def follow(shared: SharedWeights) -> SharedWeights:
    """Update the allocation's names and counts from the network; return `shared`.

    Raises ValueError if a shared layer was removed, or the network has layers of another shared
    network.
    """
    names = shared_layers(shared)
    allocation = shared.allocation
    parameters = dict(shared.root.named_parameters())
    for i, layer in enumerate(allocation.layers):
        own = parameters.get(layer.name)
        if not (i in names if layer.templates else own is not None and own.shape == layer.shape):
            raise ValueError(
                f"the shared layer {layer.name!r} is no longer in the network: change layers before"
                " npas.share, exclude the ones to be changed, or npas.materialize the network"
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
    """Raise ValueError if a shared tensor is pruned or parametrized, or a submodule is wrapped.

    The message says that `use`, such as "npas.save", is not possible.
    """
    refuse_computed(shared.root)
    for name, module in shared.root.named_modules():
        kind = type(module).__name__
        if kind in WRAPPERS and type(module).__module__.startswith("torch."):
            raise ValueError(
                f"{use} needs plain modules, and {name!r} is wrapped by {WRAPPERS[kind]}: wrap the"
                " whole network, or put the module itself back first"
            )


def shared_layers(shared: SharedWeights) -> dict[int, list[str]]:
    """Return the current names of each shared layer's weight, by its index in the allocation.

    Raises ValueError if the network has layers of another shared network.
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
    """Return each unshared parameter's (size, whether it counts) by name.

    Trainable ones count; freezing or unfreezing one after sharing does not change that.
    """
    ordinary = {layer.name for layer in shared.allocation.layers if not layer.templates}
    found = {}
    for name, parameter in shared.root.named_parameters():
        name = _without_wrappers(name)
        if name not in ordinary and not name.startswith(PREFIX):
            _, counts = shared.others.get(name, (0, parameter.requires_grad))
            found[name] = parameter.numel(), counts
    return found


def _without_wrappers(name: str) -> str:
    for part in _UNNAMED:
        name = name.replace(part, "")
    return name


def _total(others: dict[str, tuple[int, bool]]) -> int:
    return sum(size for size, counts in others.values() if counts)


def _recount(allocation: Allocation, more: int) -> Allocation:
    """Return the allocation of a network with `more` more unshared parameters."""
    budget = allocation.budget
    dense, used = budget.dense + more, budget.used + more
    try:
        allowed = parse_budget(budget.asked).allowed(dense)
    except ValueError:  # the budget was in templates or bytes
        allowed = budget.allowed + more
    return replace(
        allocation,
        budget=BudgetReport(budget.asked, dense, allowed, used),
        unshared=allocation.unshared + more,
    )


def warn_of_optimizers(dropped: Mapping[str, weakref.ref[nn.Parameter]]) -> None:
    """Warn of each optimizer that holds dense parameters which sharing has removed."""
    if all(parameter() is None for parameter in dropped.values()):  # usual, and fast
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
    """Return whether a norm has changed running means or weights; False without norms."""
    return not all(map(is_constant, _of_norms(model)))


def looks_fresh(model: nn.Module) -> bool:
    """Return whether the network has norms, all with their initial running means and weights."""
    found = _of_norms(model)
    return bool(found) and all(map(is_constant, found))


def _of_norms(model: nn.Module) -> list[Tensor]:
    """Return the running means and the weights of all norms, except meta tensors."""
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    found = (getattr(m, name, None) for m in norms for name in ("running_mean", "weight"))
    return [tensor for tensor in found if isinstance(tensor, Tensor) and not tensor.is_meta]


def refuse_huge(model: nn.Module, count: int, asked: str) -> None:
    """Raise ValueError if so many parameters, as `asked`, do not fit this machine's memory."""
    if not hasattr(os, "sysconf"):  # on Windows
        return
    trained = (t.parameter for t in find_tensors(model) if t.parameter.requires_grad)
    needed = count * max((parameter.element_size() for parameter in trained), default=4)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"{asked} takes {needed / 2**30:,.1f} GiB for its parameters alone,"
            f" and this machine has {memory / 2**30:,.1f} GiB: ask for a smaller budget"
        )
