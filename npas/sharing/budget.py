"""Count and split parameter budgets; how they are written is `npas.utils.budget`'s to say."""

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
    """Compare what was asked, what that allows and what the allocation uses, in parameters."""

    asked: str  # canonical, as "0.1" or "18M"; "dense" for a network that shares nothing
    dense: int
    allowed: int
    used: int
    utilization: float = 0.0  # used / allowed unless given, as by a file that is read

    def __post_init__(self) -> None:
        if not self.utilization:
            object.__setattr__(self, "utilization", self.used / max(1, self.allowed))

    @classmethod
    def of_dense(cls, count: int) -> BudgetReport:
        """Return the budget of the dense network itself."""
        return cls("dense", dense=count, allowed=count, used=count)

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the five figures as they stand in `result.json`."""
        return asdict(self)


@dataclass(frozen=True)
class PruningReport:
    """What pruning leaves of a network: filters, and the parameters and FLOPs of its export.

    `parameters` are those of the run: what is trained and the masks, one bit a filter, at 32 bits a
    parameter; of a dense network, which needs no masks once exported, the exported ones.
    """

    filters: int
    kept: int
    parameters: int
    exported: int
    flops: int

    def __str__(self) -> str:
        return (
            f"pruning  {self.kept:,} of {self.filters:,} filters kept: {self.exported:,} parameters"
            f" exported, {self.flops:,} FLOPs an input; {self.parameters:,} parameters with masks"
        )


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters of `model`, each shared or tied tensor once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def split_budget(total: int, sizes: Sequence[int], floors: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `sizes`, no part below its floor; the parts sum to `total`.

    Parts that proportion would leave below their floor get the floor, the others share the rest
    (largest remainder first). `total` must be at least the sum of the floors.
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
    if total != sum(parts):  # every part stands at its floor: the surplus goes to the largest
        parts[max(range(len(parts)), key=sizes.__getitem__)] += total - sum(parts)
    return parts
