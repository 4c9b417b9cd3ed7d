"""Give every layer values of the bank, rolled, with a gain for each of its rows: a way to share.

npas tells how many values a layer is given, at most as many as its weight has, and where they lie.
"""

import math

import torch
from torch import Tensor


def learned(shape: tuple[int, ...], values: int) -> tuple[int, int]:
    """Return rows x columns of the numbers that a layer of this shape trains beside the bank."""
    return shape[0], 1


def initial(shape: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Return these numbers at their start."""
    return torch.rand(shape, generator=rng) + 0.5


def weight(values_N: Tensor, learned: Tensor | None, shape: tuple[int, ...], first: int) -> Tensor:
    """Return the weight; `first` counts the weights of the layers before, and so tells them apart.

    Of twice the values it is twice the weight, and it reads all of them.
    """
    assert learned is not None
    size = math.prod(shape)
    tiled = values_N.roll(first).repeat(-(-size // len(values_N)))[:size]
    return tiled.view(shape[0], -1) * learned
