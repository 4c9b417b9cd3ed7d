"""Give each shared layer a low-rank correction of its own: weight = generated + B A.

B starts at zero, so that a network starts as it would without; A is drawn. Shapes: R x C is a
layer's matrix (`layers.matrix_form`), r its rank: B is R x r, A is r x C.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from npas.sharing.allocation import GroupAllocation, LayerAllocation
from npas.sharing.layers import PREFIX, LayerSpec, matrix_form

FACTORS = ("left", "right")  # B and A


def factor_names(index: int) -> tuple[str, str]:
    """Name B and A of the layer at this place in `Allocation.layers`."""
    left, right = (f"{PREFIX}{factor}_{index}" for factor in FACTORS)
    return left, right


def factor_shapes(index: int, layer: LayerAllocation) -> dict[str, tuple[int, int]]:
    """Return the shapes of a layer's factors, by name; none without a correction."""
    rows, columns = matrix_form(layer.shape)
    shapes = (rows, layer.rank), (layer.rank, columns)
    return dict(zip(factor_names(index), shapes, strict=True)) if layer.rank else {}


def count_corrections(groups: Iterable[Sequence[LayerSpec]], rank: int) -> int:
    """Count the parameters of the corrections of all layers that share with others."""
    return sum(
        _rank(layer, rank) * sum(matrix_form(layer.shape))
        for group in groups
        if len(group) > 1
        for layer in group
    )


def correct(group: GroupAllocation, rank: int) -> GroupAllocation:
    """Return the group with corrections of this rank: of all layers, if they are several.

    A layer whose correction would have as many parameters as its weight gets none.
    """
    if len(group.layers) < 2 or not rank:
        return group
    assert group.bank
    layers = (replace(layer, rank=_rank(layer, rank)) for layer in group.layers)
    return replace(group, layers=tuple(layers))


def _rank(layer: LayerSpec, rank: int) -> int:
    return rank if rank * sum(matrix_form(layer.shape)) < layer.size else 0


def draw_right(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Draw A, r x C, normal with a variance of 1 / C: it keeps the norm of what it multiplies."""
    return torch.randn(shape, generator=rng) / math.sqrt(shape[1])


def add_correction(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return a weight, of any shape, plus B A; in its dtype."""
    left, right = left.to(weight.dtype), right.to(weight.dtype)
    return torch.addmm(weight.reshape(len(left), -1), left, right).view(weight.shape)
