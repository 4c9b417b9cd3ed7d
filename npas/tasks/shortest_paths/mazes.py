"""Draw grid mazes and find their shortest paths, in batches on any device.

A grid is HxW cells, some of them obstacles; a move goes to one of a cell's four neighbours. Paths
are found by breadth-first search from one cell of every grid at the same time.

Dimensions: N grids, M of them still to draw, H rows, W columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from npas.utils import rng

MOST_ATTEMPTS = 1000  # draws to find two cells at the required distance
_FINE = 1 << 16  # obstacles are drawn from 16 bits each, four cells per random 64-bit number


@dataclass(frozen=True)
class Grids:
    """Grids and their shortest paths: bool, NxHxW each."""

    obstacles: Tensor
    ends: Tensor  # the two query points
    paths: Tensor  # all cells on any shortest path between them, ends included


def distances(free_NHW: Tensor, start_NHW: Tensor, limit: int) -> Tensor:
    """Return the number of moves from the start cells to every cell: int16, NxHxW.

    It is limit + 1 for obstacles and for cells that `limit` moves do not reach.
    """
    reached_NHW = start_NHW & free_NHW
    distance_NHW = (~reached_NHW).short()
    for _ in range(limit):
        grown_NHW = reached_NHW.clone()
        grown_NHW[:, 1:] |= reached_NHW[:, :-1]
        grown_NHW[:, :-1] |= reached_NHW[:, 1:]
        grown_NHW[:, :, 1:] |= reached_NHW[:, :, :-1]
        grown_NHW[:, :, :-1] |= reached_NHW[:, :, 1:]
        reached_NHW = grown_NHW & free_NHW
        distance_NHW += ~reached_NHW
    return distance_NHW


def draw(
    seed: int, purpose: str, index_N: Tensor, size: int, density: float, shortest: int, longest: int
) -> Grids:
    """Draw the grids of these indices; each is a function of seed, purpose and index.

    The length of a grid's shortest paths is drawn first, uniformly from `shortest` to `longest`
    moves; then obstacles, each cell with probability `density`, one query point, and the other one
    among the cells at that distance. If there are none, obstacles and points are drawn again.
    Raises ValueError after MOST_ATTEMPTS draws.
    """
    span = longest - shortest + 1
    length_N = shortest + rng.integers(rng.derive_key(seed, purpose, "length"), index_N, span)
    shape = (len(index_N), size, size)
    free_NHW = torch.zeros(shape, dtype=torch.bool, device=index_N.device)
    start_NHW, end_NHW = torch.zeros_like(free_NHW), torch.zeros_like(free_NHW)
    from_start_NHW = torch.zeros(shape, dtype=torch.int16, device=index_N.device)
    pending_M = torch.arange(len(index_N), device=index_N.device)
    for attempt in range(MOST_ATTEMPTS):
        drawn_M = index_N[pending_M]
        name = f"{purpose} {attempt}"
        free_MHW = _free(rng.derive_key(seed, name, "obstacles"), drawn_M, size, density)
        start_MHW = _choose(rng.derive_key(seed, name, "start"), drawn_M, free_MHW)
        from_start_MHW = distances(free_MHW, start_MHW, longest)
        far_MHW = from_start_MHW == length_N[pending_M, None, None]
        end_MHW = _choose(rng.derive_key(seed, name, "end"), drawn_M, far_MHW)
        free_NHW[pending_M], from_start_NHW[pending_M] = free_MHW, from_start_MHW
        start_NHW[pending_M], end_NHW[pending_M] = start_MHW, end_MHW
        pending_M = pending_M[~end_MHW.flatten(1).any(1)]
        if not len(pending_M):
            break
    else:
        missing = length_N[pending_M]
        raise ValueError(
            f"found no two cells {missing.min()} to {missing.max()} moves apart in {size}x{size}"
            f" grids with obstacles on {density:.0%} of them: lower task.density or task.phases, or"
            " raise task.size"
        )
    # A cell is on a shortest path if going through it takes no extra move.
    through_NHW = from_start_NHW + distances(free_NHW, end_NHW, longest)
    return Grids(~free_NHW, start_NHW | end_NHW, through_NHW == length_N[:, None, None])


def _free(key: int, index_N: Tensor, size: int, density: float) -> Tensor:
    """Draw the cells that are not obstacles: bool, NxHxW."""
    count = -(-size * size // 4)
    position_NV = index_N[:, None] * count + torch.arange(count, device=index_N.device)
    shifts = torch.arange(0, 64, 16, device=index_N.device)
    drawn_NVF = rng.bits(key, position_NV)[:, :, None] >> shifts & (_FINE - 1)
    drawn_NC = drawn_NVF.flatten(1)[:, : size * size]
    return (drawn_NC >= round(density * _FINE)).view(-1, size, size)


def _choose(key: int, index_N: Tensor, among_NHW: Tensor) -> Tensor:
    """Choose one of the marked cells of every grid uniformly; none where none is marked."""
    among_NC = among_NHW.flatten(1)
    count_NC = among_NC.cumsum(1, dtype=torch.int32)
    nth_N = rng.integers(key, index_N, count_NC[:, -1])
    return (among_NC & (count_NC == nth_N[:, None] + 1)).view_as(among_NHW)
