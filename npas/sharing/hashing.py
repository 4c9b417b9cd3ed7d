"""Give layers their weights by hashing: every run of values is one of the bank's rows, signed.

As HashedNets (Chen et al., ICML 2015) share single values by a hash, and ROAST (Desai et al., 2023)
rows of neighbours, which memory reads faster. The weights of a group's layers, end to end,
are cut into rows of `CHUNK` values, and these are the bank's rows: handed out in sweeps over the
bank, each in an order of its own, so that every row is read as often as any other.

Shapes: P values of the bank, C values a row, R rows of the bank, M rows that a weight touches.
"""

from __future__ import annotations

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
        """Do the same by an operation that can be differentiated again, a linear one."""
        part_P = None
        if needs_bank:
            given_N = gradients_N[0].to(bank_P.dtype)
            part_P = rows_gradient(given_N, len(bank_P), self.first, alpha_LK[0])
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
    """Add a flat weight's gradient to those of the rows it was read from, in place."""
    row, whole, start, count = _extent(len(buffer_P), len(gradient_N), first)
    signs_M1, pieces = _remembered(len(buffer_P), start, count, buffer_P.device)
    rows_RC, shares_M1 = buffer_P[: whole * row].view(whole, row), signs_M1 * scale
    before = first - start * row
    after = count * row - before - len(gradient_N)
    given_MC = (F.pad(gradient_N, (before, after)) if before or after else gradient_N).view(-1, row)
    for piece, places, last in pieces:
        part_MC = given_MC[piece] * shares_M1[piece]
        if len(last):
            buffer_P[-row:] += part_MC.index_select(0, last).sum(0)
            part_MC.index_fill_(0, last, 0)
        rows_RC.index_add_(0, places, part_MC)


def rows_gradient(gradient_N: Tensor, bank: int, first: int, scale: Tensor) -> Tensor:
    """Return what `add_to_rows` adds, as a bank of its own that can be differentiated."""
    row, _, start, count = _extent(bank, len(gradient_N), first)
    places_M, signs_M1 = _places(-(-bank // row), start, count, gradient_N.device)
    begins_M1 = torch.clamp(places_M * row, max=bank - row)[:, None]
    elements = begins_M1 + torch.arange(row, device=gradient_N.device)
    cut = slice(first - start * row, first - start * row + len(gradient_N))
    signs_N = signs_M1.expand(-1, row).reshape(-1)[cut]
    zeros_P = gradient_N.new_zeros(bank)
    return zeros_P.index_add(0, elements.reshape(-1)[cut], gradient_N * signs_N * scale)


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
        places_M, signs_M1 = _places(-(-bank // row), first, count, device)
        pieces = [slice(begin, begin + PIECE) for begin in range(0, count, PIECE)]
        found = [
            (
                piece,
                places_M[piece].clamp(max=whole - 1),
                (places_M[piece] == whole).nonzero().flatten(),
            )
            for piece in pieces
        ]
        return signs_M1, found
