"""Install an allocation in a network, load its tensors, and turn it back into a dense network.

`install` puts the banks and the other shared tensors on the root module as its own parameters and
attaches generated weights to the layers; `materialize` undoes it.
"""

import ctypes
import sys
import weakref
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from npas.sharing.generators.codebook import CODEBOOK, refuse_indices
from npas.sharing.generators.coefficients import FIXED, GENERATORS
from npas.sharing.generators.low_rank import factor_shapes
from npas.sharing.layers import (
    INDICES,
    PREFIX,
    SCALES,
    Layer,
    bank_name,
    find_tensors,
    generator_name,
    indices_name,
    remove_shared,
    require_network,
    shared_names,
)
from npas.sharing.layout.allocation import Allocation, LayerAllocation, learned_name
from npas.sharing.runtime import audit, storage
from npas.sharing.runtime.attachment import (
    attach,
    detach,
    require_subclasses,
    rounds_under_autocast,
)
from npas.sharing.runtime.guards import guard, remove_guards
from npas.sharing.runtime.weights import SharedWeights
from npas.utils.checks import require

Dropped = dict[str, "weakref.ref[nn.Parameter]"]


def is_shared(model: nn.Module) -> bool:
    """Return whether the network is shared; raise ValueError if it is no nn.Module."""
    return "_npas_shared" in require_network(model).__dict__


def shared_weights(model: nn.Module) -> SharedWeights:
    """Return a network's `SharedWeights`; raise ValueError if it is not shared."""
    if not is_shared(model):
        raise ValueError("the network is not shared: pass the module that npas.share returned")
    found: SharedWeights = model.__dict__["_npas_shared"]
    return found


def require_unshared(model: nn.Module) -> nn.Module:
    """Return the network. Raises ValueError if it is no nn.Module, if any part of it is shared,
    and for tensors with names that sharing uses.
    """
    modules = require_network(model).modules()
    if any("_npas" in module.__dict__ or is_shared(module) for module in modules):
        raise ValueError("the network is shared already: npas.materialize it to share it again")
    children = [name for name in model._modules if name.startswith(PREFIX)]
    if own := shared_names(model) + children:
        raise ValueError(
            f"the network's {own[0]!r} has a name that sharing uses for its own tensors, which"
            f" begin with {PREFIX!r}: rename it"
        )
    return model


def take_scales(model: nn.Module, allocation: Allocation) -> None:
    """Give the layers of a shared network the scale indices of another allocation.

    The scales are set to one, to be loaded. Raises ValueError if the plans differ otherwise.
    """
    shared = shared_weights(model)
    ours, theirs = (
        plan.map(lambda layer: replace(layer, scale=0)) for plan in (shared.allocation, allocation)
    )
    if ours != theirs:
        raise ValueError(
            "this version of npas plans another allocation: resume with the version that wrote it,"
            " or train again with resume=never"
        )
    shared.take_scales([layer.scale for layer in allocation.layers])


def install(model: nn.Module, allocation: Allocation, recompute: bool = False) -> Dropped:
    """Put zero-valued shared tensors on the root, and let every shared layer read them.

    Returns weak references to the removed dense parameters by name. Raises ValueError, before
    anything changes, if the plan does not fit the network.
    """
    require("recompute", recompute, bool, "True or False")
    planned = find_planned(model, allocation.layers)
    require_subclasses(planned)
    tensors_left = iter(planned)
    owned = [[next(tensors_left) for _ in group.layers] for group in allocation.groups]
    for group, tensors in zip(allocation.groups, owned, strict=True):
        kinds = {(t.parameter.dtype, t.parameter.device): t.spec.name for t in tensors}
        if len(kinds) > 1:
            held = ", ".join(f"{name} ({kind[0]}, {kind[1]})" for kind, name in kinds.items())
            raise ValueError(
                f"group {group.name!r} holds {held}: put them in different groups, or share before"
                " moving parts of the network"
            )
    low = [i for i, layer in enumerate(planned) if rounds_under_autocast(layer)]
    plan_digest = _digest(model, allocation)
    shared = SharedWeights(model, allocation, low, recompute)
    index = 0
    dropped = {}
    for g, (group, tensors) in enumerate(zip(allocation.groups, owned, strict=True)):
        like = tensors[0].parameter.detach()
        if group.bank:
            for name, shape in group_shapes(allocation, g).items():
                if is_buffer(name):
                    kind = torch.int32 if holds_indices(name) else like.dtype
                    model.register_buffer(name, like.new_zeros(shape, dtype=kind))
                else:
                    model.register_parameter(name, nn.Parameter(like.new_zeros(shape)))
            for i, tensor in enumerate(tensors, index):
                dropped[tensor.spec.name] = weakref.ref(tensor.parameter)
                for owner, attribute in tensor.owners:
                    attach(owner, attribute, i, shared)
        index += len(group.layers)
    like = planned[0].parameter.detach()
    model.register_buffer(SCALES, like.new_zeros(allocation.scales))
    model.__dict__["_npas_shared"] = shared
    shared.others, shared.plan = audit.count_others(shared), plan_digest
    shared.modules.update(model.modules())
    _open_passes(model, shared)
    guard(model)
    return dropped


def _digest(model: nn.Module, allocation: Allocation) -> str:
    """Return a digest of what the layers read, which names and scales do not change."""
    order = {name: str(i) for i, (name, _) in enumerate(model.named_parameters())}
    own = sorted((layer.name for layer in allocation.layers), key=lambda name: int(order[name]))
    place = {name: str(i) for i, name in enumerate(own)}
    plain = allocation.map(lambda layer: replace(layer, name=place[layer.name], scale=0))
    groups = [replace(group, name=str(g)) for g, group in enumerate(plain.groups)]
    data = replace(plain, groups=tuple(groups)).to_dict()
    return storage.digest({key: data[key] for key in ("groups", "layers")})


def find_planned(model: nn.Module, layers: Iterable[LayerAllocation]) -> list[Layer]:
    """Return the network's tensors of a plan's layers; raise ValueError if one is missing."""
    tensors = {tensor.spec.name: tensor for tensor in find_tensors(model)}
    found = []
    for layer in layers:
        tensor = tensors.get(layer.name)
        if tensor is None or tensor.spec.shape != layer.shape:
            raise ValueError(
                f"the network has no {layer.name} of shape {list(layer.shape)}: build the"
                " architecture that the allocation was made for"
            )
        found.append(tensor)
    return found


def group_shapes(allocation: Allocation, g: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a group's shared tensors by name: bank, coefficients and so on."""
    group = allocation.groups[g]
    first = sum(len(before.layers) for before in allocation.groups[:g])
    shapes: dict[str, tuple[int, ...]] = {bank_name(g): (group.bank,)}
    for (mixing, templates), layers in group.rows.items():
        for kind, shape in GENERATORS[mixing].shapes(len(layers), templates).items():
            shapes[generator_name(kind, g, templates)] = shape
    for i, layer in enumerate(group.layers, first):
        if layer.learned[0]:
            shapes[learned_name(i, layer)] = layer.learned
        shapes |= factor_shapes(i, layer)
    return shapes


def shared_shapes(allocation: Allocation) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that `install` puts on the root, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for g, group in enumerate(allocation.groups):
        shapes |= group_shapes(allocation, g) if group.bank else {}
    return shapes | {SCALES: (allocation.scales,)}


def is_buffer(name: str) -> bool:
    """Return whether a tensor that `install` puts on the root is a buffer, not a parameter."""
    return name == SCALES or name.startswith(f"{PREFIX}{FIXED}_") or holds_indices(name)


def holds_indices(name: str) -> bool:
    """Return whether a shared tensor holds a layer's indices into its codebook, integers."""
    return name.startswith(f"{PREFIX}{INDICES}_")


def restore(
    model: nn.Module, plan: Allocation | None, stored: storage.Stored, recompute: bool = False
) -> Dropped:
    """Share by a stored plan, if there is one, and load the tensors; returns as `install` does.

    Raises ValueError, before anything changes or is allocated, unless plan, tensors and network fit
    together. So a damaged plan cannot allocate more memory than its file takes.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("the network is on the meta device, without values: build it on the CPU")
    own, dropped = dict(model.state_dict()), {}
    if plan is not None:
        banked = [layer for group in plan.groups if group.bank for layer in group.layers]
        for tensor in find_planned(model, banked):
            for name in tensor.names:
                own.pop(name, None)
        shapes = shared_shapes(plan).items()
        own |= {name: torch.empty(shape, device="meta") for name, shape in shapes}
    storage.check(stored, own)
    if plan is not None:
        for i, layer in enumerate(plan.layers):
            if layer.upsampler == CODEBOOK:
                rows = -(-layer.template_size // layer.source[1])
                named = f"{stored.directory}: {indices_name(i)}"
                refuse_indices(stored.tensors[indices_name(i)], rows, named)
        dropped = install(model, plan, recompute)
    model.load_state_dict(stored.tensors, strict=False)
    return dropped


def give_back_freed() -> None:
    """Return the dense weights' freed memory to the system, which glibc keeps otherwise."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


@torch.no_grad()
def materialize(model: nn.Module) -> nn.Module:
    """Turn a shared network into a plain dense one with the same outputs, in place; return it.

    Weights are generated as in the forward pass, so fp32 results are bit-equal. Parts that were
    moved out of the network become dense, too. Raises ValueError for a network that is not shared,
    RuntimeError if a generated weight was written to, ValueError if indices were.
    """
    shared = shared_weights(model)
    shared.refuse_unstorable()
    for part in list(model.modules()):
        if part is not model and is_shared(part):
            materialize(part)
    modules = list(dict.fromkeys((*model.modules(), *shared.modules)))
    owners = [module for module in modules if "_npas" in module.__dict__]
    # A copied part of another network, put into this one, reads that network's (copied) bank.
    read: dict[SharedWeights, dict[int, None]] = {}
    for attachment in (owner.__dict__["_npas"] for owner in owners):
        read.setdefault(attachment.shared, {}).update(dict.fromkeys(attachment.layers.values()))
    dense = {weights: weights.dense_parameters(layers) for weights, layers in read.items()}
    remove_shared(model)
    for owner in owners:
        detach(owner, dense[owner.__dict__["_npas"].shared])
    _close_passes(modules, shared)
    remove_guards(model, modules)
    del model.__dict__["_npas_shared"]
    return model


def _open_passes(root: nn.Module, shared: SharedWeights) -> None:
    """Register the hooks that open a forward pass when the network is called.

    With `recompute` all parts get them at once, else a part gets them when it is first called by
    itself, since hooks cost time. Other hooks drop kept weights when a state dict is loaded, and
    check for written ones when it is made.
    """
    root.register_load_state_dict_post_hook(shared.note_loaded)
    for module in root.modules() if shared.recompute else (root,):
        held = module.modules()
        if module is root or any("_npas" in m.__dict__ for m in held if m is not module):
            shared.watch(module)
    root.register_state_dict_pre_hook(shared.refuse_unstorable)


def _close_passes(modules: Iterable[nn.Module], shared: SharedWeights) -> None:
    """Remove the hooks of `_open_passes`."""
    for module in modules:
        for hooks in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._state_dict_pre_hooks,
            module._load_state_dict_post_hooks,
        ):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is shared:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
