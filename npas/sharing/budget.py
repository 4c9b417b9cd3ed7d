"""Parse, count and split parameter budgets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

LARGEST_BARE_NUMBER = 16
_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9}
_PATTERN = re.compile(
    r"(?P<number>\d+(\.\d*)?|\.\d+)(?P<exponent>[eE][-+]?\d{1,2})?(?P<unit>[%KMB]?)"
)


@dataclass(frozen=True)
class BudgetRequest:
    """Hold a budget as asked for: a fraction of the dense count, or an absolute count.

    Exactly one of the two is set. Fractions are exact, so that `29%` of 100 parameters is 29.
    """

    fraction: Fraction | None = None
    absolute: int | None = None

    @property
    def canonical(self) -> str:
        """Spell the budget in the one way that equal budgets share: `0.1`, `2`, `18M`, `1.234K`.

        What is spelled reads back: a fraction above 16 is written in percent.
        """
        if self.absolute is not None:
            return spell_count(self.absolute)
        assert self.fraction is not None
        if self.fraction > LARGEST_BARE_NUMBER:
            return f"{_decimal(self.fraction * 100)}%"
        return _decimal(self.fraction)

    def allowed(self, dense: int) -> int:
        """Return the number of trainable parameters allowed for a dense network of `dense`."""
        if self.absolute is not None:
            return self.absolute
        assert self.fraction is not None
        return int(self.fraction * dense)


@dataclass(frozen=True)
class Budget:
    """Compare what was asked, what that allows and what the allocation uses, in parameters."""

    asked: str
    dense: int
    allowed: int
    used: int

    @property
    def utilization(self) -> float:
        """Return used / allowed."""
        return self.used / self.allowed

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the five figures as they stand in `result.json`."""
        return {
            "asked": self.asked,
            "dense": self.dense,
            "allowed": self.allowed,
            "used": self.used,
            "utilization": self.utilization,
        }


def parse_budget(value: str | float) -> BudgetRequest:
    """Parse `0.1`, `"10%"`, `2.0`, `"18M"`, `"250K"`, `"1.2B"`.

    Raises ValueError for anything else, and for a bare number above 16: it would be a budget of
    more than 1600% or a forgotten suffix, and only the user knows which.
    """
    text = str(value).strip()
    match = _PATTERN.fullmatch(text)
    if isinstance(value, bool) or match is None:
        raise ValueError(
            f"budget={text} is not a budget: write a fraction of the dense parameters (0.1 or"
            " 10%) or an absolute count (18M, 250K, 1.2B)"
        )
    number = Fraction(match["number"] + (match["exponent"] or ""))
    unit = match["unit"]
    if number <= 0:
        raise ValueError(f"budget={text} allows no parameters: write a number above zero")
    if unit in _SUFFIXES:
        absolute = int(number * _SUFFIXES[unit])
        if absolute < 1:
            raise ValueError(f"budget={text} is less than one parameter: write a larger count")
        return BudgetRequest(absolute=absolute)
    if unit == "%":
        return BudgetRequest(fraction=number / 100)
    if number > LARGEST_BARE_NUMBER:
        bare = _decimal(number)
        raise ValueError(
            f"budget={text} could mean {bare} times the dense parameters or {bare} parameters:"
            f" write {_decimal(number * 100)}% or {_decimal(number / 1000)}K (or {bare}M)"
        )
    return BudgetRequest(fraction=number)


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters of `model`, each shared or tied tensor once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def spell_count(count: int) -> str:
    """Write an absolute count exactly, as a budget can be asked for: `18M`, `17.126K`."""
    for suffix in ("B", "M"):
        unit = _SUFFIXES[suffix]
        if count >= unit and count * 1000 % unit == 0:
            return _decimal(Fraction(count, unit)) + suffix
    return _decimal(Fraction(count, 1000)) + "K"


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


def _decimal(number: Fraction) -> str:
    """Write an exact short decimal where there is one (three decimals suffice for a suffix)."""
    if number.denominator == 1:
        return str(number.numerator)
    return repr(float(number))
