"""Name, read and remove the shared tensors, which the root module holds as its own parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import prune

PREFIX = "npas_"
SCALES = f"{PREFIX}scales"
_PRUNED, _MASK = "_orig", "_mask"
"""What `torch.nn.utils.prune` adds to the name of a parameter for its two tensors."""


def shared_names(root: nn.Module) -> list[str]:
    """Name the root's tensors that weights are generated from, also pruned or parametrized ones.

    Where FSDP1 has flattened the parameters, they are plain attributes.
    """
    parametrized: Any = root._modules.get("parametrizations", ())  # getattr is slow where none is
    found = [*root._parameters, *parametrized]
    if not any(name.startswith(PREFIX) for name in found):  # only then: dynamo cannot follow it
        found += [name for name, value in root.__dict__.items() if isinstance(value, Tensor)]
    return [
        name.removesuffix(_PRUNED)
        for name in (*found, *root._buffers)
        if name.startswith(PREFIX) and not name.endswith(_MASK)
    ]


def shared_value(root: nn.Module, name: str) -> Tensor:
    """Return the tensor that weights are generated from, as pruned or parametrized.

    `torch.nn.utils.prune` computes the pruned tensor only when the root is called, so that it would
    be out of date where a part of the network is called.
    """
    own = root._parameters.get(name)
    if own is not None:  # as nearly always: what follows takes long for what runs at every read
        return own
    original = root._parameters.get(name + _PRUNED)
    mask = root._buffers.get(name + _MASK)
    if original is None or mask is None:
        found: Tensor = getattr(root, name)
        return found
    return mask.to(original.dtype) * original


def is_pruned(root: nn.Module, name: str) -> bool:
    """Tell whether `torch.nn.utils.prune` prunes a shared tensor."""
    return name + _PRUNED in root._parameters


def is_parametrized(root: nn.Module, name: str) -> bool:
    """Tell whether `torch.nn.utils.parametrize` computes a shared tensor."""
    return name in getattr(root, "parametrizations", ())


def is_trainable(root: nn.Module, name: str) -> bool:
    """Tell whether a shared tensor, or what it is computed from, takes gradients."""
    if is_parametrized(root, name):
        return any(
            p.requires_grad for p in root.get_submodule(f"parametrizations.{name}").parameters()
        )
    own = root._parameters.get(name, root._parameters.get(name + _PRUNED))
    return own is not None and own.requires_grad


def remove_shared(root: nn.Module) -> None:
    """Take the shared tensors from the root, with what prunes or parametrizes them."""
    for name in shared_names(root):
        if is_pruned(root, name):
            prune.remove(root, name)
        elif is_parametrized(root, name):
            # torch's function takes the name from the class, which copies of the root have, too.
            parametrizations = root.get_submodule("parametrizations")
            del parametrizations._modules[name]
            if not parametrizations._modules:
                del root._modules["parametrizations"]
                root.__class__ = type(root).__mro__[1]
        for tensors in (root._parameters, root._buffers):
            tensors.pop(name, None)


def bank_name(group: int) -> str:
    """Name the root's parameter that is the bank of the group at this place."""
    return f"{PREFIX}bank_{group}"


def generator_name(kind: str, group: int, templates: int) -> str:
    """Name a generator's parameter for the layers of a group that mix `templates` templates."""
    return f"{PREFIX}{kind}_{group}_{templates}"


def generator_names(root: nn.Module, group: int, templates: int) -> dict[str, str]:
    """Return the names of those that the root has, by kind."""
    suffix = generator_name("", group, templates).removeprefix(PREFIX)
    return {
        name.removeprefix(PREFIX).removesuffix(suffix): name
        for name in shared_names(root)
        if name.endswith(suffix)
    }


def upsampler_name(layer: int) -> str:
    """Name the upsampler's weights of the layer at this place in `Allocation.layers`."""
    return f"{PREFIX}upsampler_{layer}"
