"""Give layers their weights by hashing: every run of values is one of the bank's rows, signed.

As HashedNets (Chen et al., ICML 2015) share single values by a hash, and ROAST (Desai et al., 2023)
rows of neighbours, which memory reads faster. The weights of a group's layers, end to end,
are cut into rows of `CHUNK` values, and these are the bank's rows: handed out in sweeps over the
bank, each in an order of its own, so that every row is read as often as any other.

Shapes: P values of the bank, C values a row, R rows of the bank, M rows that a weight touches.
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
    from npas.sharing.bank import BufferPool

HASH = "hash"
CHUNK = 32
PIECE = 8192  # rows
SPARSE = 8
"""A layer that reads fewer than one in so many rows adds to them alone, else to the whole bank."""
GOLDEN = (math.sqrt(5) - 1) / 2


def largest_bank(allowed: int, total: int) -> int:
    """Return the largest bank of which layers of `total` weights read every value."""
    if allowed > CHUNK and -(-total // CHUNK) == -(-allowed // CHUNK):
        return (allowed - 1) // CHUNK * CHUNK  # else the last row would be read in part
    return allowed


@dataclass(frozen=True)
class HashedBlock:
    """One layer that reads rows of the bank by a hash, with `first` weights before its own.

    It has a `Block`'s face; its coefficient is a fixed scale, which has no gradient.
    """

    keys: tuple[object, ...]
    size: int
    first: int
    rows: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]

    def weights(self, values_P: Tensor, alphas: Sequence[Tensor], pool: BufferPool) -> list[Tensor]:
        """Return the layer's weight."""
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
        """Add the gradient to the rows that were read."""
        if buffer_P is not None:
            add_to_rows(buffer_P, gradients_N[0].to(bank_P.dtype), self.first, alpha_LK[0])
        return torch.zeros_like(alpha_LK)

    def differentiable(
        self, gradients_N: Sequence[Tensor], alpha_LK: Tensor, bank_P: Tensor, needs_bank: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Do the same by operations that can be differentiated again."""
        if not needs_bank:
            return torch.zeros_like(alpha_LK), None
        values_P = torch.zeros_like(bank_P, requires_grad=True)
        weight_N = hashed_weight(values_P, len(bank_P), self.size, self.first)
        given_N = gradients_N[0].to(bank_P.dtype) * alpha_LK[0]
        (part_P,) = torch.autograd.grad(weight_N, values_P, given_N, create_graph=True)
        return torch.zeros_like(alpha_LK), part_P


def hashed_weight(values_P: Tensor, bank: int, size: int, first: int) -> Tensor:
    """Return the flat weight of a layer that has `first` weights before it, of a bank of P values.

    By plain operations, for compilers, tracers and function transforms.
    """
    row, whole, start, count = _extent(bank, size, first)
    rows_RC = values_P[: whole * row].view(whole, row)
    if bank % row:  # the last row lies flush with the end
        rows_RC = torch.cat([rows_RC, values_P[-row:][None]])
    places_M, signs_M1 = _places(-(-bank // row), start, count, values_P.device)
    weight_MC = rows_RC.index_select(0, places_M) * signs_M1.to(values_P.dtype)
    return weight_MC.reshape(-1)[first - start * row :][:size]


def read_rows(
    values_P: Tensor, size: int, first: int, scale: Tensor, made_MC: Callable[[int, int], Tensor]
) -> Tensor:
    """Return the same without gradients, in memory that is given for so many rows and values."""
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
    """Add a flat weight's gradient to those of the rows it was read from, in place.

    Each row of the bank gathers from where it was read, which memory serves faster than scattering.
    """
    row, size, cuts = min(CHUNK, len(buffer_P)), len(gradient_N), [0]
    if size > PIECE * row:  # filling up rows that are read in part would copy much: they go alone
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
    """Return C, the rows that do not overlap, the first that a weight touches, and M."""
    row = min(CHUNK, bank)
    start = first // row
    return row, bank // row, start, -(-(first + size) // row) - start


def _places(rows: int, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which row of the bank each of `count` rows is, and its sign, M x 1."""
    number_M = torch.arange(first, first + count, dtype=torch.int64)
    sweep_M, place_M = number_M // rows, number_M % rows
    earliest, latest = first // rows, (first + count - 1) // rows
    steps = torch.stack(  # of scalars that a tracer takes for constants
        [torch.full((), _step(rows, sweep)) for sweep in range(earliest, latest + 1)]
    )
    step_M = steps[sweep_M - earliest]
    places_M = (place_M * step_M + sweep_M * (rows // 3 + 1)) % rows
    mixed_M = (number_M * 2654435761 + sweep_M * 40503) % (1 << 32)  # Knuth's multiplicative hash
    signs_M = ((mixed_M >> 15) % 2) * 2 - 1
    return places_M.to(device), signs_M[:, None].to(device)


def _step(rows: int, sweep: int) -> int:
    """Return a step that visits every one of the rows once, another in the next sweep."""
    step = max(1, round(rows * ((GOLDEN * (sweep + 1)) % 1.0)))
    while math.gcd(step, rows) > 1:
        step += 1
    return step


@lru_cache(maxsize=2048)
def _remembered(
    bank: int, first: int, count: int, device: torch.device
) -> tuple[Tensor, list[tuple[slice, Tensor, Tensor]]]:
    """Return the signs, and by pieces the places, and where in the piece the last row is read.

    Pieces are such that their copies stay in the cache, in memory that is soon used again. Where
    rows do not divide the bank, the last lies flush with its end: no place of a piece names it.
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
    """Return by pieces which rows of the bank are read, and where in the weight, with which signs.

    The rows of a piece are a tensor, or where most are read the slice of the bank that they fill;
    what a row is read by begins at its entry in the third.
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
