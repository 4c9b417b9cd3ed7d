from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import npas
from npas.sharing.budget import parse_budget, spell_count, split_budget
from npas.sharing.layout.allocator import choose_templates


@pytest.mark.parametrize(
    ("value", "canonical", "allowed"),
    [
        (0.1, "0.1", 3_653_688),
        ("10%", "0.1", 3_653_688),
        (2.0, "2", 73_073_768),
        ("1e-2", "0.01", 365_368),
        ("18M", "18M", 18_000_000),
        ("0.25M", "250K", 250_000),
        ("17.125630M", "17125.63K", 17_125_630),
        (16, "16", 584_590_144),
        ("2000%", "2000%", 730_737_680),
        ("18m", "18M", 18_000_000),
        (Fraction(1, 10), "0.1", 3_653_688),
        (Fraction(1, 3), "1/3", 12_178_961),
        (Decimal("0.1"), "0.1", 3_653_688),
        (np.float32(0.1), "0.1", 3_653_688),
        ("33.333333333333336%", "0.33333333333333336", 12_178_961),
        ("1000000.5%", "1000000.5%", 365_369_022_684),
        ("1e30%", f"1{'0' * 30}%", 36_536_884 * 10**28),
    ],
)
def test_budgets_are_read_as_the_user_means_them(value, canonical, allowed):
    request = parse_budget(value)
    assert (request.canonical, request.allowed(36_536_884)) == (canonical, allowed)
    assert parse_budget(canonical) == request


@pytest.mark.parametrize(
    ("value", "canonical", "size"),
    [
        ("16MB", "16MB", 16_000_000),
        ("500KB", "500KB", 500_000),
        ("0.5mb", "500KB", 500_000),
        ("1.2GB", "1.2GB", 1_200_000_000),
        ("15.863489MB", "15863.489KB", 15_863_489),
        ("0.012KB", "0.012KB", 12),
    ],
)
def test_two_letters_are_bytes(value, canonical, size):
    request = parse_budget(value)
    assert (request.canonical, request.size, request.absolute) == (canonical, size, None)
    assert parse_budget(canonical) == request
    with pytest.raises(ValueError, match="bounds bytes, not parameters"):
        request.allowed(100)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("abc", "is not a budget"),
        ("-1", "is not a budget"),
        ("nan", "is not a budget"),
        ("1_000", "is not a budget"),
        ("1/0", "is not a budget"),
        ("9" * 200, "is not a budget"),
        ("1e99B", "too many digits"),
        ("1." + 60 * "3" + "e-60%", "too many digits"),
        (True, "is not a budget"),
        (0, "above zero"),
        ("0.0001K", "less than one parameter"),
        ("0.0001KB", "less than one byte"),
        ("16TB", "is not a budget"),
        (18, "write 18% of the dense parameters, 1800% for 18 times as many, or 18M for millions$"),
        (18_000_000, "no unit: write 18M for 18,000,000 parameters$"),
        (1234.5, "write 1.234K for 1,234 parameters$"),
        ([0.1], "is not a budget"),
    ],
)
def test_invalid_budgets_are_refused_with_what_to_write(value, says):
    with pytest.raises(ValueError, match=says) as error:
        parse_budget(value)
    assert "\n" not in str(error.value)


DIGITS = st.text("0123456789", min_size=1, max_size=30)
NUMBERS = st.builds(lambda a, b: f"{a}.{b}", DIGITS, DIGITS)
TEXTS = st.builds(
    lambda number, exponent, unit: f"{number}{exponent}{unit}",
    NUMBERS,
    st.one_of(st.just(""), st.builds(lambda e: f"e{e}", st.integers(-99, 99))),
    st.sampled_from(["", "%", "k", "M", "B", "KB", "gb"]),
)


@given(st.one_of(TEXTS, st.fractions(min_value=0, max_value=16), st.floats(0, 16)))
@example("0.1e-97%")
def test_the_canonical_form_reads_back_as_the_very_budget(value):
    try:
        request = parse_budget(value)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    again = parse_budget(request.canonical)
    assert again == request and again.canonical == request.canonical


@given(st.integers(min_value=1, max_value=10**20))
def test_a_spelled_count_reads_back(count):
    assert parse_budget(spell_count(count)).absolute == count


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 1000)), min_size=1, max_size=12),
    st.integers(0, 10**7),
)
def test_parts_sum_to_the_total_and_respect_floors(groups, above):
    sizes, floors = [size for size, _ in groups], [floor for _, floor in groups]
    parts = split_budget(sum(floors) + above, sizes, floors)
    assert sum(parts) == sum(floors) + above
    assert all(part >= floor for part, floor in zip(parts, floors, strict=True))


@pytest.mark.parametrize(
    "options", [{"budget": "9000B"}, {"budget": "1e30%"}, {"templates": 9000, "groups": "shape"}]
)
def test_what_no_memory_can_hold_is_refused_before_it_is_made(options, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 8000 if name == "SC_PHYS_PAGES" else 4096)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    with pytest.raises(ValueError, match=r"takes [\d.,]+ GiB.*: ask for a smaller budget$"):
        npas.share(model, **options)
    assert len(model.state_dict()) == 4 and not npas.is_shared(model)


@pytest.mark.parametrize("budget", ["9000B", "1e30%", "9000GB"])
def test_a_plan_of_ten_thousand_networks_is_refused_before_it_lists_its_templates(budget):
    with pytest.raises(ValueError, match="more than 10,000 times the network's 3,660 parameters"):
        npas.plan(nn.Linear(60, 60), budget)


@pytest.mark.parametrize("generator", ["wavg", "emb", "mlp", "channels"])
def test_any_number_of_templates_may_be_allowed(generator):
    tiny = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(50)))
    for budget in (0.2, 2.0):  # most of 2**62 coefficients would not fit
        plan = npas.plan(tiny, budget, generator=generator, max_templates=2**62)
        assert plan.budget.used == plan.budget.allowed


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 3000),
    st.integers(1, 9),
    st.integers(0, 50),
)
def test_the_smallest_number_of_templates_that_reads_the_bank_is_found(sizes, bank, most, span):
    span = min(span, bank)

    def one_by_one(most):
        while True:
            templates = [min(most, bank // size) for size in sizes]
            read = span + sum(k * n for k, n in zip(templates, sizes, strict=True))
            if read >= bank or not any(templates):
                return templates
            held = [
                i
                for i, n in enumerate(sizes)
                if 0 < templates[i] < most and templates[i] * n < bank
            ]
            if held:
                templates[max(held, key=lambda i: sizes[i])] += 1
                return templates
            most += 1

    assert choose_templates(sizes, bank, most, span) == one_by_one(most)
