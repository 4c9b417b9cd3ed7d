"""Say which matrices layers read from a bank: a flat vector to torch, matrices to the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from npas.sharing.allocation import LayerAllocation
from npas.sharing.layers import bank_name, matrix_form


@dataclass(frozen=True)
class Templates:
    """Templates of one shape, rows x columns, that start at these places of a bank."""

    rows: int
    columns: int
    starts: tuple[int, ...]


def bank_templates(model: nn.Module) -> dict[nn.Parameter, list[Templates]]:
    """Return the templates that layers read from each bank of a network, each of them once.

    A template of a layer's own size has the shape of its matrix; one that is resized that of its
    map; else it is a row. Banks that are pruned or parametrized are left out.
    """
    found: dict[nn.Parameter, list[Templates]] = {}
    for module in model.modules():
        shared = module.__dict__.get("_npas_shared")
        for g, group in enumerate(shared.allocation.groups if shared is not None else ()):
            bank = module._parameters.get(bank_name(g))
            if bank is None:
                continue
            starts: dict[tuple[int, int], set[int]] = {}
            for layer in group.layers:
                starts.setdefault(_matrix(layer), set()).update(layer.templates)
            found[bank] = [Templates(*shape, tuple(sorted(at))) for shape, at in starts.items()]
    return found


def _matrix(layer: LayerAllocation) -> tuple[int, int]:
    if layer.upsampler is None:
        return matrix_form(layer.shape)
    return layer.source if layer.upsampler == "inter" else (1, layer.template_size)
