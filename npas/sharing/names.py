"""Name the shared tensors, which the root module holds as its own parameters."""

from __future__ import annotations

from torch import Tensor, nn

PREFIX = "npas_"
SCALES = f"{PREFIX}scales"


def shared_names(root: nn.Module) -> list[str]:
    """Name the root's tensors that weights are generated from, also where parametrized.

    Where FSDP1 has flattened the parameters, they are plain attributes.
    """
    plain = [name for name, value in root.__dict__.items() if isinstance(value, Tensor)]
    found = [*root._parameters, *root._buffers, *getattr(root, "parametrizations", ()), *plain]
    return [name for name in found if name.startswith(PREFIX)]


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
