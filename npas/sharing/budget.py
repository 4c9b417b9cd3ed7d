"""Count parameters and split a budget over groups; `npas.utils.budget` parses budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from npas.sharing.layers import INDICES, PREFIX, require_network
from npas.utils.budget import Budget as Budget
from npas.utils.budget import BudgetReport as BudgetReport
from npas.utils.budget import PruningReport as PruningReport
from npas.utils.budget import parse_budget as parse_budget
from npas.utils.budget import spell_count as spell_count

if TYPE_CHECKING:
    from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters of `model`; a tied tensor counts once.

    The indices into codebooks, which do not train, count too (see `npas.sharing.generators`).
    """
    trained = (p for p in require_network(model).parameters() if p.requires_grad)
    named = ((name.rpartition(".")[2], buffer) for name, buffer in model.named_buffers())
    indices = (b for name, b in named if name.startswith(f"{PREFIX}{INDICES}_"))
    return sum(tensor.numel() for tensor in (*trained, *indices))


def split_budget(total: int, sizes: Sequence[int], floors: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `sizes`; each part is at least its floor.

    The parts sum to `total` (largest remainder method). A part that would be below its floor gets
    its floor, and the others share the rest. `total` must be at least the sum of the floors.
    """
    assert total >= sum(floors)
    at_floor: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in at_floor]
        rest = total - sum(floors[i] for i in at_floor)
        weight = sum(sizes[i] for i in free)
        below = {i for i in free if rest * sizes[i] < floors[i] * weight}
        if not below:
            break
        at_floor |= below
    parts = list(floors)
    for i in free:
        parts[i] = rest * sizes[i] // weight
    missing = total - sum(parts)
    by_remainder = sorted(free, key=lambda i: (-(rest * sizes[i] % weight), i))
    for i in (by_remainder or list(range(len(parts))))[:missing]:
        parts[i] += 1
    if total != sum(parts):  # every part is at its floor: the largest gets the surplus
        parts[max(range(len(parts)), key=sizes.__getitem__)] += total - sum(parts)
    return parts
