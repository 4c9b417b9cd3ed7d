"""Put shared tensors and generated weights into a network, and take them out again."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from npas.sharing import audit, storage
from npas.sharing.allocation import Allocation, LayerAllocation
from npas.sharing.attachment import (
    attach,
    close_passes,
    detach,
    open_passes,
    rounds_under_autocast,
)
from npas.sharing.audit import Dropped
from npas.sharing.coefficients import FIXED
from npas.sharing.guards import guard, remove_guards
from npas.sharing.layers import (
    PREFIX,
    SCALES,
    Layer,
    find_tensors,
    remove_shared,
)
from npas.sharing.storage import free_saving, guard_saving
from npas.sharing.stored import check_tensors, check_unshared, group_shapes
from npas.sharing.weights import SharedWeights


def take_scales(model: nn.Module, allocation: Allocation) -> None:
    """Give the layers of a shared network the places in the list of scales that a plan gives them.

    The scales themselves are to be loaded. ValueError if the plans differ in anything else.
    """
    shared = shared_weights(model)
    if _without_scales(allocation) != _without_scales(shared.allocation):
        raise ValueError(
            "its allocation is another than this version of npas plans: go on with the version"
            " that wrote it, or train again with resume=never"
        )
    if allocation != shared.allocation:
        shared.replace(allocation)
        scales = 1 + max(layer.scale for layer in allocation.layers)
        model.register_buffer(SCALES, model.get_buffer(SCALES).new_ones(scales))


def _without_scales(allocation: Allocation) -> Allocation:
    groups = tuple(
        replace(group, layers=tuple(replace(layer, scale=0) for layer in group.layers))
        for group in allocation.groups
    )
    return replace(allocation, groups=groups)


def is_shared(model: nn.Module) -> bool:
    """Return whether `share` made this network."""
    return "_npas_shared" in model.__dict__


def shared_weights(model: nn.Module) -> SharedWeights:
    """Return what a shared network's layers read from; ValueError if it is not shared."""
    if not is_shared(model):
        raise ValueError("the network is not shared: pass the module that npas.share returned")
    found: SharedWeights = model.__dict__["_npas_shared"]
    return found


@torch.no_grad()
def materialize(model: nn.Module) -> nn.Module:
    """Turn a shared network into a plain dense one with the same outputs, in place; return it.

    Weights come from the call that the forward pass makes, so fp32 results are equal to the bit.
    Parts that were moved out of the network become dense, too.
    Raises ValueError for a network that is not shared, and RuntimeError where a generated weight
    was written to.
    """
    shared = shared_weights(model)
    shared.refuse_written()
    for part in list(model.modules()):
        if part is not model and is_shared(part):
            materialize(part)
    modules = list(dict.fromkeys((*model.modules(), *shared.modules)))
    owners = [module for module in modules if "_npas" in module.__dict__]
    # A copy of another network's part, put into this one, reads the bank of a copy of that network.
    dense: dict[SharedWeights, dict[int, nn.Parameter]] = {}
    for attachment in (owner.__dict__["_npas"] for owner in owners):
        weights = dense.setdefault(attachment.shared, {})
        for i in attachment.layers.values():
            if i not in weights:
                weights[i] = attachment.shared.dense_parameter(i)
    remove_shared(model)  # first: a parametrization of the root's has made a class of its own
    for owner in owners:
        detach(owner, dense[owner.__dict__["_npas"].shared])
    close_passes(modules, shared)
    remove_guards(model, modules)
    free_saving(modules)
    del model.__dict__["_npas_shared"]
    return model


def install_stored(
    model: nn.Module, plan: Allocation, stored: storage.Stored, recompute: bool = False
) -> Dropped:
    """Share as a stored allocation says, and return what `install` returns.

    ValueError unless the allocation fits its tensors and the network.
    """
    check_tensors(plan, stored, model)
    dropped = install(model, plan, recompute)
    check_unshared(plan, stored, model)
    return dropped


def install(model: nn.Module, allocation: Allocation, recompute: bool = False) -> Dropped:
    """Put zero-valued shared tensors on the root and let every shared layer read them.

    Returns the dense parameters, which are the network's no longer, by name, if they are still
    alive.
    """
    tensors = {tensor.spec.name: tensor for tensor in find_tensors(model)}
    # Whatever can be wrong is found before anything changes.
    owned = [[dense_tensor(tensors, layer) for layer in g.layers] for g in allocation.groups]
    likes = [_one_kind(g.name, own) for g, own in zip(allocation.groups, owned, strict=True)]
    low = [i for i, layer in enumerate(chain(*owned)) if rounds_under_autocast(layer)]
    shared = SharedWeights(model, allocation, low, recompute)
    index = 0
    for g, group in enumerate(allocation.groups):
        if group.bank:
            for name, shape in group_shapes(g, group, index).items():
                if name.startswith(f"{PREFIX}{FIXED}_"):
                    model.register_buffer(name, likes[g].new_zeros(shape))
                else:
                    model.register_parameter(name, nn.Parameter(likes[g].new_zeros(shape)))
            for place, tensor in enumerate(owned[g]):
                for owner, attribute in tensor.owners:
                    attach(owner, attribute, index + place, shared)
        index += len(group.layers)
    scales = 1 + max(layer.scale for layer in allocation.layers)
    model.register_buffer(SCALES, likes[0].new_zeros(scales))
    model.__dict__["_npas_shared"] = shared
    shared.others = audit.count_others(shared)
    shared.modules.update(model.modules())
    open_passes(model, shared)
    guard(model)
    guard_saving(model)
    return {
        tensor.spec.name: weakref.ref(tensor.parameter)
        for group, own in zip(allocation.groups, owned, strict=True)
        if group.bank
        for tensor in own
    }


def dense_tensor(tensors: Mapping[str, Layer], layer: LayerAllocation) -> Layer:
    """Return a network's tensor that a plan names; ValueError if it has none of that shape."""
    found = tensors.get(layer.name)
    if found is None or found.spec.shape != layer.shape:
        raise ValueError(
            f"the network has no {layer.name} of shape {list(layer.shape)}: build the architecture"
            " that the allocation was made for"
        )
    return found


def _one_kind(group: str, layers: Sequence[Layer]) -> Tensor:
    """Return a parameter that tells the bank's dtype and device; ValueError if they differ."""
    first = layers[0].parameter
    for layer in layers:
        if (layer.parameter.dtype, layer.parameter.device) != (first.dtype, first.device):
            raise ValueError(
                f"group {group!r} holds {layers[0].spec.name} ({first.dtype}, {first.device}) and"
                f" {layer.spec.name} ({layer.parameter.dtype}, {layer.parameter.device}): put them"
                " in different groups, or share before moving parts of the network"
            )
    return first.detach()


def require_unshared(model: nn.Module) -> nn.Module:
    """Return the network; ValueError if it is none, or shares anywhere."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{model!r} is no network: pass an nn.Module")
    if any("_npas" in module.__dict__ or is_shared(module) for module in model.modules()):
        raise ValueError("the network is shared already: npas.materialize it to share it again")
    return model
