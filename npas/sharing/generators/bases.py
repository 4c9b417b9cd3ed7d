"""Make weights whose rows have their own coefficients: shared bases, and templates by channel.

Basis, as in Basis Sharing (Wang et al., ICLR 2025) and truncated SVD: the weight is a matrix of R
rows (or columns) of N values. Each row mixes K vectors of length N, contiguous in the bank. The
learned mixture is K x (R - P), since P rows can be basis vectors themselves. With P = K a matrix of
rank K takes K (R + N - K) parameters, its degrees of freedom, instead of K (R + N). The last vector
and its mixtures may be truncated (padded by zeros) to meet a budget exactly.

Tiles, after SuperWeights (Teterwak et al., WACV 2024): the weight's matrix is cut into tiles of one
shape, those at its lower and right edges cropped, and each tile is a row of R x N as above: larger
layers consist of more tiles, each with K coefficients.

Channels: row r, an output channel, mixes the r-th rows of the layer's K templates by its own
coefficients; all rows' are K x R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from npas.sharing.layers import matrix_form
from npas.sharing.torch_private import is_traced

if TYPE_CHECKING:
    from npas.sharing.layout.allocation import LayerAllocation

TILES = "tiles"
BASES = ("rows", "columns", TILES)
"""What mixes the basis: rows or columns of a weight's matrix, out x rest, or tiles of it."""
CHANNELS = "channels"


def extent(layer: LayerAllocation) -> tuple[int, int, int]:
    """Return R, N and K of a layer."""
    rows, values = matrix_form(layer.shape)
    if layer.upsampler == "columns":
        rows, values = values, rows
    elif layer.upsampler == TILES:
        rows, values = math.prod(tile_grid(layer.shape, layer.source)), math.prod(layer.source)
    return rows, values, -(-layer.template_size // values)


def tile_grid(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles cover the height and the width of a weight's matrix."""
    rows, columns = matrix_form(shape)
    return -(-rows // tile[0]), -(-columns // tile[1])


def basis_weight(source_T: Tensor, learned: Tensor, layer: LayerAllocation) -> Tensor:
    """Return the flat weight from the bank values that a layer reads and its mixtures."""
    rows, values, vectors = extent(layer)
    rest = rows - len(layer.kept)
    basis_KN = _pad(source_T, vectors * values).view(vectors, values)
    mixture_KR = _pad(learned.reshape(-1), vectors * rest).view(vectors, rest)
    weight_RN = mixture_KR.T @ basis_KN
    if layer.kept:
        pair = torch.cat([basis_KN[: len(layer.kept)], weight_RN])
        order = (_order if is_traced() else _remembered)(layer.kept, rows, source_T.device)
        weight_RN = pair.index_select(0, order)
    if layer.upsampler == TILES:
        (down, across), (height, width) = tile_grid(layer.shape, layer.source), layer.source
        tiles = weight_RN.view(down, across, height, width).transpose(1, 2)
        rows, columns = matrix_form(layer.shape)
        weight_RN = tiles.reshape(down * height, across * width)[:rows, :columns]
    return (weight_RN.T if layer.upsampler == "columns" else weight_RN).reshape(-1)


def template_starts(span: int, size: int, count: int) -> list[int]:
    """Return where templates of `size` start in a span; if they overlap, spread evenly."""
    room = min(count * size, span) - size
    return [k * room // max(count - 1, 1) for k in range(count)]


def channel_weight(span_T: Tensor, learned_KR: Tensor, layer: LayerAllocation) -> Tensor:
    """Return the flat weight, sum_k alpha_kr T_k[r] for each row r, from the span of templates."""
    rows = matrix_form(layer.shape)[0]
    weight_RN: Tensor | None = None
    for k, start in enumerate(template_starts(len(span_T), layer.size, len(learned_KR))):
        part_RN = span_T[start : start + layer.size].view(rows, -1) * learned_KR[k][:, None]
        weight_RN = part_RN if weight_RN is None else weight_RN + part_RN
    assert weight_RN is not None
    return weight_RN.reshape(-1)


def initial_mixture(layer: LayerAllocation, rng: torch.Generator) -> Tensor:
    """Draw mixtures that preserve the bank's variance, apart from a truncated vector."""
    drawn = torch.randn(layer.learned, generator=rng)
    return drawn / (drawn.square().mean().sqrt() * math.sqrt(extent(layer)[2]))


def basis_variance(layer: LayerAllocation) -> float:
    """Return the mean variance of an initial weight for a bank of unit variance."""
    rows, values, vectors = extent(layer)
    last = (
        layer.template_size - (vectors - 1) * values,
        math.prod(layer.learned) - (vectors - 1) * rows,
    )
    return (vectors - 1 + math.prod(last) / (rows * values)) / vectors


def _pad(values: Tensor, size: int) -> Tensor:
    return F.pad(values, (0, size - len(values))) if size > len(values) else values


def _order(kept: Sequence[int], rows: int, device: torch.device) -> Tensor:
    """Return each row's index among the kept rows, in their order, and then the others."""
    others = sorted(set(range(rows)).difference(kept))
    place = {row: i for i, row in enumerate((*kept, *others))}
    return torch.tensor([place[row] for row in range(rows)], device=device)


@lru_cache(maxsize=1024)
def _remembered(kept: Sequence[int], rows: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _order(kept, rows, device)
