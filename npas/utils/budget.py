"""Parse budgets such as `0.1`, `10%`, `18M` and `16MB`, and report the counts used."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from decimal import Context, Decimal
from fractions import Fraction
from numbers import Rational, Real

LARGEST_BARE_NUMBER = 16
LONGEST = 100  # characters of a budget
_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9}
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}  # two letters: 1.2B stays 1.2 billion parameters
_PATTERN = re.compile(
    r"(?P<number>\d+(\.\d*)?|\.\d+|\d+/\d+)(?P<exponent>[eE][-+]?\d{1,2})?(?P<unit>[KMG]B|[%KMB]?)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Budget:
    """A budget: a fraction of the dense count, an absolute count, or bytes.

    Exactly one of the three is set. Fractions are exact, so that `29%` of 100 parameters is 29.
    `size` bounds the exported artifact in bytes, and with it the parameters.
    """

    fraction: Fraction | None = None
    absolute: int | None = None
    size: int | None = None

    @property
    def canonical(self) -> str:
        """Return the canonical form, which parses to this budget: `0.1`, `2`, `18M`, `16MB`.

        A fraction above 16 is written in percent.
        """
        if self.absolute is not None:
            return spell_count(self.absolute)
        if self.size is not None:
            return spell_size(self.size)
        assert self.fraction is not None
        if self.fraction > LARGEST_BARE_NUMBER:
            return f"{_spell(self.fraction * 100)}%"
        return _spell(self.fraction)

    def allowed(self, dense: int) -> int:
        """Return the number of trainable parameters allowed for a dense network of `dense`.

        Raises ValueError for bytes, whose number of parameters depends on the network.
        """
        if self.absolute is not None:
            return self.absolute
        if self.size is not None:
            raise ValueError(f"budget={self.canonical} bounds bytes, not parameters: npas.plan it")
        assert self.fraction is not None
        return int(self.fraction * dense)


BudgetLike = str | float | Rational | Decimal | Budget


def parse_budget(value: BudgetLike) -> Budget:
    """Parse `0.1`, `"10%"`, `2.0`, `"18M"`, `"250k"`, `"1.2B"`, `Fraction(1, 3)`, `"1/3"`.

    `"16MB"` and `"500KB"` are bytes; 1 KB is 1,000 bytes. A `Budget` is returned unchanged; a float
    means its shortest decimal form. Raises ValueError for anything else, and for a bare number
    above 16, which may be a budget above 1600% or lack a suffix.
    """
    if isinstance(value, Budget):
        return value
    text = str(value).strip()
    match = _PATTERN.fullmatch(text) if len(text) <= LONGEST else None
    is_number = isinstance(value, (str, Real, Decimal)) and not isinstance(value, bool)
    if match is None or not is_number or re.search(r"/0*(\D|$)", text):
        raise ValueError(
            f"budget={text[:LONGEST]} is not a budget: write a fraction of the dense parameters"
            " (0.1 or 10%) or an absolute count (18M, 250K, 1.2B)"
            ", or the bytes of an artifact (16MB, 500KB)"
        )
    number = Fraction(match["number"]) * Fraction("1" + (match["exponent"] or ""))
    unit = match["unit"].upper()
    if number <= 0:
        raise ValueError(f"budget={text} allows no parameters: write a number above zero")
    if unit in _SUFFIXES or unit in _BYTES:
        count = int(number * (_SUFFIXES | _BYTES)[unit])
        if count < 1:
            what = "byte" if unit in _BYTES else "parameter"
            raise ValueError(f"budget={text} is less than one {what}: write a larger number")
        budget = Budget(size=count) if unit in _BYTES else Budget(absolute=count)
    elif unit == "%":
        budget = Budget(fraction=number / 100)
    elif number <= LARGEST_BARE_NUMBER:
        budget = Budget(fraction=number)
    else:
        bare = _spell(number)
        reading = (
            f"{bare}% of the dense parameters, {_spell(number * 100)}% for {bare} times as many,"
            f" or {bare}M for millions"
        )
        if number >= 1000:
            reading = f"{spell_count(int(number))} for {int(number):,} parameters"
        raise ValueError(f"budget={text} has no unit: write {reading}")
    if len(budget.canonical) > LONGEST or not _PATTERN.fullmatch(budget.canonical):
        raise ValueError(f"budget={text} has too many digits: write fewer")
    return budget


def spell_count(count: int) -> str:
    """Write an absolute count exactly, as a budget: `18M`, `17.126K`."""
    return _spell_in(count, _SUFFIXES)


def spell_size(size: int) -> str:
    """Write bytes exactly, as a budget: `16MB`, `15863.489KB`, `0.012KB`."""
    return _spell_in(size, _BYTES)


def _spell_in(count: int, units: dict[str, int]) -> str:
    """Write a count in the largest unit that needs at most three decimals, else in the smallest."""
    smallest, *larger = units
    for suffix in reversed(larger):
        unit = units[suffix]
        if count >= unit and count * 1000 % unit == 0:
            return _spell(Fraction(count, unit)) + suffix
    return _spell(Fraction(count, units[smallest])) + smallest


def _spell(number: Fraction) -> str:
    """Write a number exactly: as the shortest float, a longer decimal, or a quotient."""
    if number.denominator == 1:
        return str(number.numerator)
    short = repr(float(number))
    if Fraction(short) == number:
        return short
    exact = Context(prec=3 * LONGEST)
    decimal = exact.divide(Decimal(number.numerator), Decimal(number.denominator))
    return f"{decimal:f}" if Fraction(decimal) == number else str(number)


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
        return cls("dense", dense=count, allowed=count, used=count)

    def to_dict(self) -> dict[str, str | int | float]:
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
