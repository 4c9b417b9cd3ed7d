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
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from npas.sharing.generators.rows import PIECE, Readers, Reads, RowsBlock, signed_rows

HASH = "hash"
CHUNK = 32
CPU = torch.device("cpu")
GOLDEN = (math.sqrt(5) - 1) / 2


def largest_bank(allowed: int, total: int) -> int:
    """Return the largest bank, at most `allowed`, that layers of `total` weights read in full."""
    if allowed > CHUNK and -(-total // CHUNK) == -(-allowed // CHUNK):
        return (allowed - 1) // CHUNK * CHUNK  # else the last row would be partly read
    return allowed


@dataclass(frozen=True)
class HashedBlock(RowsBlock):
    """A hashed layer, after `first` weights of the group's previous layers."""

    first: int

    def read(self, values_P: Tensor, scale: Tensor, empty: Callable[[int, int], Tensor]) -> Tensor:
        return read_rows(values_P, self.size, self.first, scale, empty)

    def add(self, buffer_P: Tensor, gradient_N: Tensor, scale: Tensor) -> None:
        add_to_rows(buffer_P, gradient_N, self.first, scale)

    def plain(self, values_P: Tensor) -> Tensor:
        return hashed_weight(values_P, len(values_P), self.size, self.first)


def hashed_weight(values_P: Tensor, bank: int, size: int, first: int) -> Tensor:
    """Return a layer's flat weight, for `first` weights before it and a bank of `bank` values.

    Uses only plain operations, for compilers, tracers and function transforms.
    """
    row, start, count = _extent(bank, size, first)
    places_M, signs_M1 = _places(-(-bank // row), start, count, values_P.device)
    weight_MC = signed_rows(values_P, bank, row, places_M, signs_M1)
    return weight_MC.reshape(-1)[first - start * row :][:size]


def read_rows(
    values_P: Tensor, size: int, first: int, scale: Tensor, made_MC: Callable[[int, int], Tensor]
) -> Tensor:
    """Return the flat weight without gradients, in memory that `made_MC` allocates."""
    row, start, count = _extent(len(values_P), size, first)
    weight_MC = made_MC(count, row)
    _remembered(len(values_P), start, count, values_P.device).fill(values_P, scale, weight_MC)
    return weight_MC.view(-1)[first - start * row :][:size]


def add_to_rows(buffer_P: Tensor, gradient_N: Tensor, first: int, scale: Tensor) -> None:
    """Add a flat weight's gradient to the rows that it was read from, in place."""
    row, size, cuts = min(CHUNK, len(buffer_P)), len(gradient_N), [0]
    if size > PIECE * row:  # partly read rows go separately: padding copies the whole
        head = -first % row
        cuts = sorted({0, head, size - (size - head) % row} - {size})
    for begin, end in itertools.pairwise([*cuts, size]):
        _, start, count = _extent(len(buffer_P), end - begin, first + begin)
        before = first + begin - start * row
        padding = before, count * row - before - (end - begin)
        given_N = gradient_N[begin:end]
        given_MC = (F.pad(given_N, padding) if any(padding) else given_N).view(-1, row)
        _readers(len(buffer_P), start, count, buffer_P.device).add(buffer_P, given_MC, scale)


def _extent(bank: int, size: int, first: int) -> tuple[int, int, int]:
    """Return C, the first row of the weight, and M."""
    row = min(CHUNK, bank)
    start = first // row
    return row, start, -(-(first + size) // row) - start


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
def _remembered(bank: int, first: int, count: int, device: torch.device) -> Reads:
    row = min(CHUNK, bank)
    with torch.inference_mode(False):
        return Reads.of(bank, row, *_places(-(-bank // row), first, count, CPU), device)


@lru_cache(maxsize=8192)
def _readers(bank: int, first: int, count: int, device: torch.device) -> Readers:
    row = min(CHUNK, bank)
    with torch.inference_mode(False):
        return Readers.of(bank, row, *_places(-(-bank // row), first, count, CPU), device)
