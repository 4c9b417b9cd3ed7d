"""The hash generator: a layer's weight consists of signed rows of its bank.

HashedNets (Chen et al., ICML 2015) hash single values; ROAST (Desai et al., 2023) hashes rows of
consecutive values, which is faster to read. Here the concatenated weights of a group's layers are
cut into rows of `CHUNK` values. Each is a row of the bank, assigned in sweeps over the whole bank,
each in another order, so that all rows are read equally often. `HashedBlock` is one such layer.

Shapes: P values of the bank, C values per row, R rows of the bank, M rows that a weight overlaps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from npas.sharing.runtime.bank import BufferPool

HASH = "hash"
CHUNK = 32
PIECE = 8192  # rows
SPARSE = 8
"""In backward a layer that reads less than 1 / SPARSE of the rows adds to those rows only."""
GOLDEN = (math.sqrt(5) - 1) / 2


def largest_bank(allowed: int, total: int) -> int:
    """Return the largest bank, at most `allowed`, that layers of `total` weights read in full."""
    if allowed > CHUNK and -(-total // CHUNK) == -(-allowed // CHUNK):
        return (allowed - 1) // CHUNK * CHUNK  # else the last row would be partly read
    return allowed


@dataclass(frozen=True)
class HashedBlock:
    """A hashed layer of `size` weights, after `first` weights of the group's previous layers.

    It has the interface of `Block`. Its coefficient is a fixed scale without gradient.
    """

    keys: tuple[object, ...]
    size: int
    first: int
    rows: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]

    def weights(self, values_P: Tensor, alphas: Sequence[Tensor], pool: BufferPool) -> list[Tensor]:
        """Return the layer's weight in its shape, in a list."""
        ((m, row),) = self.rows
        scale = alphas[m][row].to(values_P.dtype)
        weight_N = read_rows(
            values_P,
            self.size,
            self.first,
            scale,
            lambda *shape: pool.empty(self.keys[0], shape, values_P),
        )
        return [weight_N.view(self.shapes[0])]

    def gather(
        self,
        gradients_N: Sequence[Tensor],
        alpha_LK: Tensor,
        bank_P: Tensor,
        buffer_P: Tensor | None,
        wanted: bool,
    ) -> Tensor:
        """Add the gradient to the rows of the buffer that were read; return zeros."""
        if buffer_P is not None:
            add_to_rows(buffer_P, gradients_N[0].to(bank_P.dtype), self.first, alpha_LK[0])
        return torch.zeros_like(alpha_LK)

    def differentiable(
        self, gradients_N: Sequence[Tensor], alpha_LK: Tensor, bank_P: Tensor, needs_bank: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return zeros and, if needed, the bank's gradient, both differentiable."""
        if not needs_bank:
            return torch.zeros_like(alpha_LK), None
        values_P = torch.zeros_like(bank_P, requires_grad=True)
        weight_N = hashed_weight(values_P, len(bank_P), self.size, self.first)
        given_N = gradients_N[0].to(bank_P.dtype) * alpha_LK[0]
        (part_P,) = torch.autograd.grad(weight_N, values_P, given_N, create_graph=True)
        return torch.zeros_like(alpha_LK), part_P


def hashed_weight(values_P: Tensor, bank: int, size: int, first: int) -> Tensor:
    """Return a layer's flat weight, for `first` weights before it and a bank of `bank` values.

    Uses only plain operations, for compilers, tracers and function transforms.
    """
    row, whole, start, count = _extent(bank, size, first)
    rows_RC = values_P[: whole * row].view(whole, row)
    if bank % row:  # the last row ends at the bank's end
        rows_RC = torch.cat([rows_RC, values_P[-row:][None]])
    places_M, signs_M1 = _places(-(-bank // row), start, count, values_P.device)
    weight_MC = rows_RC.index_select(0, places_M) * signs_M1.to(values_P.dtype)
    return weight_MC.reshape(-1)[first - start * row :][:size]


def read_rows(
    values_P: Tensor, size: int, first: int, scale: Tensor, made_MC: Callable[[int, int], Tensor]
) -> Tensor:
    """Return the flat weight without gradients, in memory that `made_MC` allocates."""
    row, whole, start, count = _extent(len(values_P), size, first)
    signs_M1, pieces = _remembered(len(values_P), start, count, values_P.device)
    rows_RC, shares_M1 = values_P[: whole * row].view(whole, row), signs_M1 * scale
    weight_MC = made_MC(count, row)
    for piece, places, last in pieces:
        part_MC = weight_MC[piece]
        torch.index_select(rows_RC, 0, places, out=part_MC)
        if len(last):
            part_MC.index_copy_(0, last, values_P[-row:].expand(len(last), row))
        part_MC.mul_(shares_M1[piece])
    return weight_MC.view(-1)[first - start * row :][:size]


def add_to_rows(buffer_P: Tensor, gradient_N: Tensor, first: int, scale: Tensor) -> None:
    """Add a flat weight's gradient to the rows that it was read from, in place.

    Each row of the bank gathers its readers' gradients, which is faster than scattering them.
    """
    row, size, cuts = min(CHUNK, len(buffer_P)), len(gradient_N), [0]
    if size > PIECE * row:  # partly read rows go separately: padding copies the whole
        head = -first % row
        cuts = sorted({0, head, size - (size - head) % row} - {size})
    for begin, end in itertools.pairwise([*cuts, size]):
        _, whole, start, count = _extent(len(buffer_P), end - begin, first + begin)
        before = first + begin - start * row
        padding = before, count * row - before - (end - begin)
        given_N = gradient_N[begin:end]
        given_MC = (F.pad(given_N, padding) if any(padding) else given_N).view(-1, row)
        for rows, places, begins, signs in _readers(len(buffer_P), start, count, buffer_P.device):
            sums_RC = F.embedding_bag(
                places, given_MC, begins, mode="sum", per_sample_weights=signs * scale
            )
            if isinstance(rows, Tensor):
                buffer_P[: whole * row].view(whole, row).index_add_(0, rows, sums_RC)
            else:
                buffer_P[rows] += sums_RC.view(-1)


def _extent(bank: int, size: int, first: int) -> tuple[int, int, int, int]:
    """Return C, the bank's number of whole rows, the first row of the weight, and M."""
    row = min(CHUNK, bank)
    start = first // row
    return row, bank // row, start, -(-(first + size) // row) - start


def _places(rows: int, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the bank row of each of `count` rows of a weight, M, and its sign, M x 1."""
    number_M = torch.arange(first, first + count, dtype=torch.int64)
    sweep_M, place_M = number_M // rows, number_M % rows
    earliest, latest = first // rows, (first + count - 1) // rows
    steps = torch.stack(  # scalars are constants to a tracer
        [torch.full((), _step(rows, sweep)) for sweep in range(earliest, latest + 1)]
    )
    step_M = steps[sweep_M - earliest]
    places_M = (place_M * step_M + sweep_M * (rows // 3 + 1)) % rows
    mixed_M = (number_M * 2654435761 + sweep_M * 40503) % (1 << 32)  # Knuth's multiplicative hash
    signs_M = ((mixed_M >> 15) % 2) * 2 - 1
    return places_M.to(device), signs_M[:, None].to(device)


def _step(rows: int, sweep: int) -> int:
    """Return a step, coprime with `rows`, by which a sweep visits every row once."""
    step = max(1, round(rows * ((GOLDEN * (sweep + 1)) % 1.0)))
    while math.gcd(step, rows) > 1:
        step += 1
    return step


@lru_cache(maxsize=2048)
def _remembered(
    bank: int, first: int, count: int, device: torch.device
) -> tuple[Tensor, list[tuple[slice, Tensor, Tensor]]]:
    """Return the signs, M x 1, and (slice, bank rows, uses of the last row) of each piece.

    Pieces fit the cache. If C does not divide the bank, the last row ends at the bank's end and
    overlaps the one before. Then it is not among the bank rows, and its uses are listed separately.
    """
    row = min(CHUNK, bank)
    whole = bank // row
    with torch.inference_mode(False):
        places_M, signs_M1 = _places(-(-bank // row), first, count, torch.device("cpu"))
        found = []
        for begin in range(0, count, PIECE):
            piece = slice(begin, begin + PIECE)
            last = (places_M[piece] == whole).nonzero().flatten()
            named = places_M[piece].clamp(max=whole - 1).int()
            found.append((piece, named.to(device), last.to(device)))
        return signs_M1.to(torch.int8).to(device), found


@lru_cache(maxsize=8192)
def _readers(
    bank: int, first: int, count: int, device: torch.device
) -> list[tuple[slice | Tensor, Tensor, Tensor, Tensor]]:
    """Return (bank rows, places in the weight, begins, signs) of each piece of the bank.

    The bank rows are a tensor of indices or, if most rows are read, the slice of values that they
    fill. `begins` holds the index in places of each row's first reader, as `embedding_bag` needs.
    """
    row = min(CHUNK, bank)
    whole = bank // row
    found: list[tuple[slice | Tensor, Tensor, Tensor, Tensor]] = []
    with torch.inference_mode(False):
        places_M, signs_M1 = _places(-(-bank // row), first, count, torch.device("cpu"))
        is_dense = count * SPARSE >= whole
        order_M = (places_M if is_dense else (places_M == whole).int()).sort(stable=True).indices
        sorted_M = places_M[order_M]
        rows = torch.arange(whole) if is_dense else sorted_M[sorted_M < whole]
        begins = torch.arange(len(rows) + 1, dtype=torch.int32)
        if is_dense:
            begins = torch.searchsorted(sorted_M, torch.arange(whole + 1)).int()
        signs_M, order_M = signs_M1.flatten().to(torch.int8)[order_M].to(device), order_M.int()
        for at in range(0, len(rows), PIECE):
            part = begins[at : at + PIECE + 1]
            read = slice(int(part[0]), int(part[-1]))
            filled = slice(at * row, (at + len(part) - 1) * row)
            named = filled if is_dense else rows[at : at + PIECE].to(device)
            own = order_M[read].to(device), (part[:-1] - part[0]).to(device), signs_M[read]
            found.append((named, *own))
        last = slice(int(begins[-1]), count)
        if last.start < count:
            own = order_M[last].to(device), begins.new_zeros(1).to(device), signs_M[last]
            found.append((slice(bank - row, bank), *own))
    return found
