"""Make a weight whose rows are mixed one by one: of a shared basis, or each of its own templates.

A basis: every row, or every column, mixes the same few vectors.

As Basis Sharing (Wang et al., ICLR 2025) and truncated SVD do it: of a weight as a matrix, R rows
of N values, the K templates are vectors of length N that lie side by side in the bank, and the
learned mixture is K x (R - P). P rows are vectors of the basis themselves, so that a matrix of rank
K takes K (R + N - K) parameters, which is what it has degrees of freedom, and not K (R + N).

The last vector, and the mixtures with it, may be cut short (zeros follow), by which a budget is met
to the parameter.

Channels: row r, an output channel, mixes the r-th rows of the layer's K templates by coefficients
of its own, K x R.
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
    from npas.sharing.allocation import LayerAllocation

BASES = ("rows", "columns")
"""What mixes: the rows of a weight's matrix, out x rest, or its columns."""
CHANNELS = "channels"


def extent(layer: LayerAllocation) -> tuple[int, int, int]:
    """Return R, N and K of a layer."""
    rows, values = matrix_form(layer.shape)
    if layer.upsampler == "columns":
        rows, values = values, rows
    return rows, values, -(-layer.template_size // values)


def is_basis(layer: LayerAllocation) -> bool:
    """Return whether basis and mixtures are of sizes that give the layer's weight."""
    rows, _, vectors = extent(layer)
    kept, count = layer.kept, math.prod(layer.learned)
    room = vectors * (rows - len(kept))
    return (
        len(set(kept)) == len(kept) <= vectors
        and all(0 <= row < rows for row in kept)
        and 0 < min(layer.learned) <= count <= room
    )


def basis_weight(source_T: Tensor, learned: Tensor, layer: LayerAllocation) -> Tensor:
    """Return the flat weight of the bank's values that a layer reads and of its mixtures."""
    rows, values, vectors = extent(layer)
    rest = rows - len(layer.kept)
    basis_KN = _pad(source_T, vectors * values).view(vectors, values)
    mixture_KR = _pad(learned.reshape(-1), vectors * rest).view(vectors, rest)
    weight_RN = mixture_KR.T @ basis_KN
    if layer.kept:
        pair = torch.cat([basis_KN[: len(layer.kept)], weight_RN])
        order = (_order if is_traced() else _remembered)(layer.kept, rows, source_T.device)
        weight_RN = pair.index_select(0, order)
    return (weight_RN if layer.upsampler == "rows" else weight_RN.T).reshape(-1)


def template_starts(span: int, size: int, count: int) -> list[int]:
    """Return where templates of `size` start in a span: where they overlap, spread evenly."""
    room = min(count * size, span) - size
    return [k * room // max(count - 1, 1) for k in range(count)]


def channel_weight(span_T: Tensor, learned_KR: Tensor, layer: LayerAllocation) -> Tensor:
    """Return the flat weight of the span that a layer reads: sum_k alpha_kr T_k[r] for each row."""
    rows = matrix_form(layer.shape)[0]
    weight_RN: Tensor | None = None
    for k, start in enumerate(template_starts(len(span_T), layer.size, len(learned_KR))):
        part_RN = span_T[start : start + layer.size].view(rows, -1) * learned_KR[k][:, None]
        weight_RN = part_RN if weight_RN is None else weight_RN + part_RN
    assert weight_RN is not None
    return weight_RN.reshape(-1)


def initial_mixture(layer: LayerAllocation, rng: torch.Generator) -> Tensor:
    """Draw mixtures, as learned, that keep the bank's variance, but for what is cut short."""
    drawn = torch.randn(layer.learned, generator=rng)
    return drawn / (drawn.square().mean().sqrt() * math.sqrt(extent(layer)[2]))


def basis_variance(layer: LayerAllocation) -> float:
    """Return the mean variance of a weight at its start, of a bank of variance one."""
    rows, values, vectors = extent(layer)
    last = (
        layer.template_size - (vectors - 1) * values,
        math.prod(layer.learned) - (vectors - 1) * rows,
    )
    return (vectors - 1 + math.prod(last) / (rows * values)) / vectors


def _pad(values: Tensor, size: int) -> Tensor:
    return F.pad(values, (0, size - len(values))) if size > len(values) else values


def _order(kept: Sequence[int], rows: int, device: torch.device) -> Tensor:
    """Return where each row of the weight is found: the kept ones first, the others in order."""
    others = sorted(set(range(rows)).difference(kept))
    place = {row: i for i, row in enumerate((*kept, *others))}
    return torch.tensor([place[row] for row in range(rows)], device=device)


@lru_cache(maxsize=1024)
def _remembered(kept: Sequence[int], rows: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _order(kept, rows, device)
