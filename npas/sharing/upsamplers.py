"""Give a weight to a layer that is larger than its bank (Plummer et al., 3.1; low budgets).

`inter` resizes a smaller two-dimensional map, the others tile the bank: `repeat` plainly, `mask`
and `wavg` with a few learned weights a layer.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from npas.sharing.resize import resize

WINDOW = 9
"""Values that one learned pattern of `mask` spans: a 3x3 kernel."""


class Upsampler(Protocol):
    """Say what an upsampler reads and learns, and how it makes `size` weights of a source."""

    def learned(self, size: int, bank: int) -> tuple[int, int]:
        """Return the shape of the learned weights of a layer of `size` over a bank of `bank`."""

    def initial(self, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
        """Return the initial learned weights, such that every weight keeps the bank's variance."""

    def weight(self, source: Tensor, learned: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Return the flat weight whose matrix form, out x rest, is `shape`."""


class Repeat:
    """Tile the bank."""

    def learned(self, size: int, bank: int) -> tuple[int, int]:
        """Return no weights."""
        return (0, 0)

    def initial(self, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
        """Return no weights."""
        return torch.empty(shape)

    def weight(self, source: Tensor, learned: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Return copies of the source, cut at the layer's size."""
        size = math.prod(shape)
        return source.repeat(-(-size // source.numel()))[:size]


class Mask(Repeat):
    """Tile the bank; each copy after the first is multiplied by a learned repeating pattern."""

    def learned(self, size: int, bank: int) -> tuple[int, int]:
        """Return copies x window."""
        return (max(0, -(-size // bank) - 1), WINDOW)

    def initial(self, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
        """Draw signs: the copies differ and none starts smaller than the first."""
        return torch.randint(0, 2, shape, generator=rng).float() * 2 - 1

    def weight(self, source: Tensor, learned: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Return the source and its masked copies, cut at the layer's size."""
        assert learned is not None
        size, length = math.prod(shape), source.numel()
        patterns = learned.repeat(1, -(-length // learned.shape[1]))[:, :length]
        return torch.cat([source, (patterns * source).reshape(-1)])[:size]


class WeightedHalves(Repeat):
    """Lay segments of half a bank each, every one a learned mixture of the bank's two halves."""

    def learned(self, size: int, bank: int) -> tuple[int, int]:
        """Return segments x 2."""
        return (-(-size // -(-bank // 2)), 2)

    def initial(self, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
        """Spread the mixtures over the half circle: all differ, each has unit norm."""
        offset = torch.rand((), generator=rng)
        angle = (torch.arange(shape[0]) + offset) * (math.pi / shape[0])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def weight(self, source: Tensor, learned: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Return the segments in order, cut at the layer's size; odd banks overlap by one."""
        assert learned is not None
        half = -(-source.numel() // 2)
        halves = torch.stack([source[:half], source[-half:]])
        return (learned @ halves).reshape(-1)[: math.prod(shape)]


class Interpolate(Repeat):
    """Resize a smaller map bilinearly: half-pixel centres, no corner alignment, as released."""

    def weight(self, source: Tensor, learned: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Return the resized map; `source` is a matrix, rows x columns."""
        return resize(source, shape).reshape(-1)


UPSAMPLERS: dict[str, Upsampler] = {
    "inter": Interpolate(),
    "repeat": Repeat(),
    "mask": Mask(),
    "wavg": WeightedHalves(),
}


def source_map(bank: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Choose the map that `inter` resizes from: near the layer's aspect, as full as can be.

    Among row counts within a quarter of the proportional one it takes the one that leaves the
    fewest bank values unread, the nearest to the proportion first. Where the best leaves more than
    a thousandth (tiny banks, or a bank that nearly holds the layer), the map is one row, the whole
    bank, and is resized along the flat weight.
    """
    rows, columns = shape
    ideal = math.sqrt(bank * rows / columns)
    nearest = range(max(1, math.floor(ideal * 0.8)), min(rows, math.ceil(ideal * 1.25)) + 1)

    def unread(r: int) -> int:
        return bank - r * min(columns, bank // r)

    best = min(nearest, key=lambda r: (unread(r), abs(r - ideal)), default=1)
    return (best, min(columns, bank // best)) if unread(best) * 1000 <= bank else (1, bank)
