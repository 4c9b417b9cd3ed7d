"""List the matrices that layers read from each bank, for optimizers of matrices such as Muon.

A bank is one flat parameter; layers read slices of it as matrices (`Templates`).
"""

from dataclasses import dataclass

from torch import nn

from npas.sharing.generators.bases import BASES, TILES, extent
from npas.sharing.layers import bank_name, matrix_form
from npas.sharing.layout.allocation import LayerAllocation


@dataclass(frozen=True)
class Templates:
    """Templates of one shape, rows x columns, and their start positions in a bank."""

    rows: int
    columns: int
    starts: tuple[int, ...]


def bank_templates(model: nn.Module) -> dict[nn.Parameter, list[Templates]]:
    """Return the templates of each bank of a network, without duplicates.

    A template of a layer's size has the shape of the layer's matrix, a resized one that of its
    source map, one that tiles mix that of a tile. A basis is a matrix with one vector per row. Any
    other template is a single row. Pruned and parametrized banks are left out.
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
                for shape, at in _matrices(layer):
                    starts.setdefault(shape, set()).update(at)
            found[bank] = [Templates(*shape, tuple(sorted(at))) for shape, at in starts.items()]
    return found


def _matrices(layer: LayerAllocation) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
    """Return pairs (shape, start positions) of the matrices that a layer reads."""
    if layer.upsampler is None:
        return [(matrix_form(layer.shape), layer.templates)]
    if layer.upsampler in BASES:  # whole vectors, then a truncated one
        (start,), length = layer.templates, extent(layer)[1]
        whole, rest = divmod(layer.template_size, length)
        if layer.upsampler == TILES:
            at = tuple(start + k * length for k in range(whole))
            tail = [((1, rest), (start + whole * length,))] if rest else []
            return [(layer.source, at), *tail]
        parts = ((whole, length), (start,)), ((1, rest), (start + whole * length,))
        return [part for part in parts if part[0][0] * part[0][1]]
    shape = layer.source if layer.upsampler == "inter" else (1, layer.template_size)
    return [(shape, layer.templates)]
