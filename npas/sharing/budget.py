"""Count parameters and split a budget over groups; `npas.utils.budget` parses budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from npas.utils.budget import Budget as Budget
from npas.utils.budget import parse_budget as parse_budget
from npas.utils.budget import spell_count as spell_count

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class BudgetReport:
    """Parameter counts: the dense network's, those allowed, those that the allocation uses."""

    asked: str  # in canonical form, e.g. "0.1" or "18M"; "dense" if nothing is shared
    dense: int
    allowed: int
    used: int
    utilization: float = 0.0  # used / allowed; given only when read from a file

    def __post_init__(self) -> None:
        if not self.utilization:
            object.__setattr__(self, "utilization", self.used / max(1, self.allowed))

    @classmethod
    def of_dense(cls, count: int) -> BudgetReport:
        """Return the report of a dense network of `count` parameters."""
        return cls("dense", dense=count, allowed=count, used=count)

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields as in `result.json`."""
        return asdict(self)


@dataclass(frozen=True)
class PruningReport:
    """Counts after pruning: filters, and the exported network's parameters and FLOPs per input.

    `parameters` counts the run's trained parameters and its masks (one bit per filter, 32 bits per
    parameter). For a dense network, which needs no masks, it equals `exported`.
    """

    filters: int
    kept: int
    parameters: int
    exported: int
    flops: int

    def __str__(self) -> str:
        return (
            f"pruning  {self.kept:,} of {self.filters:,} filters kept: {self.exported:,} parameters"
            f" exported, {self.flops:,} FLOPs per input; {self.parameters:,} parameters with masks"
        )


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters of `model`; a tied tensor counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


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
