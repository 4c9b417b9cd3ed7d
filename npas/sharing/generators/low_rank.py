"""Low-rank corrections: a shared layer's weight is its generated weight + B A.

A layer's weight is R x C as a matrix (`layers.matrix_form`); for rank r, B is R x r and A is r x C.
B starts at zero, A at random, so the correction is zero at first; that of a fitted network starts
as the nearest one to the error of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npas.sharing.layers import PREFIX, LayerSpec, matrix_form

if TYPE_CHECKING:
    from npas.sharing.layout.allocation import GroupAllocation, LayerAllocation


def factor_names(index: int) -> tuple[str, str]:
    """Return the parameter names of B and A for the layer at `index` in `Allocation.layers`."""
    return f"{PREFIX}left_{index}", f"{PREFIX}right_{index}"


def factor_shapes(index: int, layer: LayerAllocation) -> dict[str, tuple[int, int]]:
    """Return the shapes of a layer's B and A by name; empty if its rank is 0."""
    rows, columns = matrix_form(layer.shape)
    shapes = (rows, layer.rank), (layer.rank, columns)
    return dict(zip(factor_names(index), shapes, strict=True)) if layer.rank else {}


def count_corrections(groups: Iterable[Sequence[LayerSpec]], rank: int) -> int:
    """Count the correction parameters of all groups with two or more layers."""
    return sum(
        _rank(layer, rank) * sum(matrix_form(layer.shape))
        for group in groups
        if len(group) > 1
        for layer in group
    )


def correct(group: GroupAllocation, rank: int) -> GroupAllocation:
    """Return the group with corrections of this rank added.

    Groups without a bank or of one layer get none, nor do layers whose correction would have as
    many parameters as their weight.
    """
    if len(group.layers) < 2 or not group.bank:
        return group
    layers = (replace(layer, rank=_rank(layer, rank)) for layer in group.layers)
    return replace(group, layers=tuple(layers))


def _rank(layer: LayerSpec, rank: int) -> int:
    return rank if rank * sum(matrix_form(layer.shape)) < layer.size else 0


def draw_right(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Return a normal A, r x C, of variance 1 / C, so that |A x| is about |x|."""
    return torch.randn(shape, generator=rng) / math.sqrt(shape[1])


def add_correction(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return weight + B A in the weight's shape and dtype."""
    left, right = left.to(weight.dtype), right.to(weight.dtype)
    return torch.addmm(weight.reshape(len(left), -1), left, right).view(weight.shape)
