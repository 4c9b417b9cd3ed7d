from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npas.sharing.budget import parse_budget, spell_count, split_budget


@pytest.mark.parametrize(
    ("value", "canonical", "allowed"),
    [
        (0.1, "0.1", 3_653_688),
        ("10%", "0.1", 3_653_688),
        ("0.10", "0.1", 3_653_688),
        (1, "1", 36_536_884),
        (2.0, "2", 73_073_768),
        ("150%", "1.5", 54_805_326),
        ("1e-2", "0.01", 365_368),
        ("18M", "18M", 18_000_000),
        ("250K", "250K", 250_000),
        ("0.25M", "250K", 250_000),
        ("1.2B", "1.2B", 1_200_000_000),
        ("17.125630M", "17125.63K", 17_125_630),
        (16, "16", 584_590_144),
        ("2000%", "2000%", 730_737_680),
    ],
)
def test_budgets_are_read_as_the_user_means_them(
    value: str | float, canonical: str, allowed: int
) -> None:
    request = parse_budget(value)
    assert (request.canonical, request.allowed(36_536_884)) == (canonical, allowed)
    assert parse_budget(canonical) == request


def test_fractions_are_exact() -> None:
    assert parse_budget(0.29).allowed(100) == 29
    assert parse_budget("29%").fraction == Fraction(29, 100)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("abc", "is not a budget"),
        ("", "is not a budget"),
        ("-1", "is not a budget"),
        ("nan", "is not a budget"),
        ("inf", "is not a budget"),
        ("1_000", "is not a budget"),
        ("18m", "is not a budget"),
        (True, "is not a budget"),
        (0, "above zero"),
        ("0%", "above zero"),
        ("0.0001K", "less than one parameter"),
        (18, "1800% or 0.018K"),
        (18_000_000, "18000K"),
        (1e5, "write 10000000% or 100K"),
    ],
)
def test_nonsense_is_refused_with_what_to_write(value: str | float, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        parse_budget(value)
    assert "\n" not in str(error.value)


@given(st.integers(min_value=1, max_value=10**12))
def test_a_spelled_count_reads_back(count: int) -> None:
    assert parse_budget(spell_count(count)).absolute == count


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 1000)), min_size=1, max_size=12),
    st.integers(0, 10**7),
)
def test_parts_sum_to_the_total_and_respect_floors(
    groups: list[tuple[int, int]], above: int
) -> None:
    sizes, floors = [size for size, _ in groups], [floor for _, floor in groups]
    parts = split_budget(sum(floors) + above, sizes, floors)
    assert sum(parts) == sum(floors) + above
    assert all(part >= floor for part, floor in zip(parts, floors, strict=True))


def test_parts_are_proportional_where_floors_allow() -> None:
    assert split_budget(100, [1, 3], [0, 0]) == [25, 75]
    assert split_budget(100, [1, 10, 100], [16, 16, 16]) == [16, 16, 68]
