"""Give layers their weights by hashing: every run of values is one of the bank's rows, signed.

As HashedNets (Chen et al., ICML 2015) share single values by a hash, and ROAST (Desai et al., 2023)
rows of neighbours, which memory reads faster. The weights of a group's layers, end to end,
are cut into rows of `CHUNK` values, and these are the bank's rows: handed out in sweeps over the
bank, each in an order of its own, so that every row is read as often as any other.

Shapes: P values of the bank, C values a row, R rows of the bank, M rows that a weight touches.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from npas.sharing.torch_private import is_traced

HASH = "hash"
CHUNK = 32
GOLDEN = (math.sqrt(5) - 1) / 2


def largest_bank(allowed: int, total: int) -> int:
    """Return the largest bank of which layers of `total` weights read every value."""
    if allowed > CHUNK and -(-total // CHUNK) == -(-allowed // CHUNK):
        return (allowed - 1) // CHUNK * CHUNK  # else the last row would be read in part
    return allowed


def hashed_weight(values_P: Tensor, size: int, first: int) -> Tensor:
    """Return the flat weight of a layer that has `first` weights of others before it."""
    row = min(CHUNK, len(values_P))
    whole = len(values_P) // row
    rows_RC = values_P[: whole * row].view(whole, row)
    if len(values_P) % row:  # the last row lies flush with the end
        rows_RC = torch.cat([rows_RC, values_P[-row:][None]])
    start, stop = first // row, -(-(first + size) // row)
    asked = len(rows_RC), start, stop - start, values_P.device
    places_M, signs_M1 = (_places if is_traced() else _remembered)(*asked)
    weight_MC = F.embedding(places_M, rows_RC) * signs_M1.to(values_P.dtype)
    return weight_MC.reshape(-1)[first - start * row :][:size]


def _places(rows: int, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which row of the bank each of `count` rows is, and its sign, M x 1."""
    number_M = torch.arange(first, first + count, dtype=torch.int64)
    sweep_M, place_M = number_M // rows, number_M % rows
    steps = [_step(rows, int(sweep)) for sweep in range(int(sweep_M[0]), int(sweep_M[-1]) + 1)]
    step_M = torch.tensor(steps)[sweep_M - sweep_M[0]]
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


@lru_cache(maxsize=1024)
def _remembered(rows: int, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return _places(rows, first, count, device)
