"""Budgets are exact and no bank parameter is unread, at any budget."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npas.sharing.budget import Budget, parse_budget
from npas.sharing.generators.coefficients import CHOICES, STRUCTURED
from npas.sharing.generators.upsample import UPSAMPLERS
from npas.sharing.layers import LayerSpec, matrix_form
from npas.sharing.layout.allocation import Allocation, Scheme
from npas.sharing.layout.allocator import allocate
from npas.sharing.layout.draft import place_spans
from npas.sharing.layout.groups import assign_groups
from npas.sharing.layout.structured import WHOLE

CHANNELS = st.sampled_from([1, 2, 3, 4, 8, 10, 16, 17, 32, 64, 100])


@st.composite
def networks(draw):
    """Draw layers, some of one shape as in real networks, and unshared parameters beside them."""
    convolution = st.tuples(CHANNELS, CHANNELS, kernel := st.sampled_from([1, 3, 5]), kernel)
    shapes = draw(
        st.lists(st.one_of(convolution, st.tuples(CHANNELS, CHANNELS)), min_size=1, max_size=5)
    )
    shapes = [shape for shape in shapes if sum(n > 1 for n in shape) >= 2] or [(8, 8, 3, 3)]
    depth = draw(st.integers(1, 14))
    layers = []
    for i in range(depth):
        shape = shapes[draw(st.integers(0, len(shapes) - 1))]
        layers.append(
            LayerSpec(f"layer.{i}.weight", shape, "linear" if len(shape) == 2 else "conv2d")
        )
    return layers, draw(st.integers(0, 400))


SCHEMES = st.builds(
    Scheme,
    generator=st.sampled_from((*CHOICES, "fixed")),
    upsampler=st.sampled_from(sorted(UPSAMPLERS)),
    max_templates=st.sampled_from([1, 2, 4, 8]),
    coefficient_init=st.sampled_from(["orthogonal", "legendre"]),
    low_rank=st.sampled_from([0, 0, 1, 4]),
    upsample_templates=st.sampled_from([1, 2, 3]),
)
GROUPS = st.sampled_from(["single", "type", "shape", "place", "depth:2", "random"])
TINY = [LayerSpec(f"{i}.weight", (2, 2), "linear") for i in range(2)], 0
ODD = [LayerSpec("0.weight", (17, 11), "linear")], 0  # two maps of half a bank of 19
BUDGETS = st.one_of(
    st.floats(0.005, 4.0),
    st.floats(0.9, 2.1),  # groups of one layer change their ways between 100% and 200%
)


@settings(max_examples=150, deadline=None)
@given(networks(), SCHEMES, GROUPS, BUDGETS, st.integers(0, 3))
@example(TINY, Scheme(generator="factorized", low_rank=1), "single", 0.8, 0)
@example(ODD, Scheme(upsample_templates=2), "single", 0.105, 0)
def test_every_budget_is_kept_used_up_and_read_whole(network, scheme, groups, fraction, seed):
    layers, unshared = network
    if scheme.generator in WHOLE:  # which have no use for more, or several maps
        fraction = min(fraction, 0.8)
    if scheme.generator in STRUCTURED or scheme.upsampler != "inter":
        scheme = replace(scheme, upsample_templates=1)
    groups = "single" if len(layers) == 1 else groups
    group_of = assign_groups(
        layers, groups, min(3, len(layers)) if groups == "random" else None, seed
    )
    dense = unshared + sum(layer.size for layer in layers)
    request = parse_budget(f"{fraction:.4f}")
    try:
        plan = allocate(layers, group_of, request, dense, scheme)
    except ValueError as error:
        floor = int(re.search(r"at least ([\d,]+)", str(error)).group(1).replace(",", ""))  # type: ignore[union-attr]
        assert request.allowed(dense) < floor
        plan = allocate(layers, group_of, Budget(absolute=floor), dense, scheme)
        with pytest.raises(
            ValueError,
            match=f"budget={re.escape(parse_budget(f'{floor / 1000}K').canonical)} or more",
        ):
            allocate(layers, group_of, Budget(absolute=floor - 1), dense, scheme)
        check(plan, layers, unshared, slack=floor)
        return
    check(plan, layers, unshared, slack=max(plan.budget.allowed // 1000, len(layers)))


def check(plan, layers, unshared, slack):
    assert 0 <= plan.budget.allowed - plan.budget.used <= slack
    assert plan.budget.used == count(plan) + unshared == sum(plan.split.values())
    assert sorted(layer.name for layer in plan.layers) == sorted(layer.name for layer in layers)
    for group in plan.groups:
        read = [0] * group.bank
        for layer in group.layers:
            for start in layer.templates:
                assert 0 <= start <= start + layer.template_size <= group.bank
                read[start : start + layer.template_size] = [1] * layer.template_size
            assert len(set(layer.templates)) == len(layer.templates)
        assert all(read), (group.name, read.index(0))
    assert Allocation.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def count(plan):
    """Count again, from what every layer says of itself."""
    total = 0
    for group in plan.groups:
        total += group.bank
        maps = set()
        for layer in group.layers:
            k = len(layer.templates)
            total += layer.size if not k else 0
            total += layer.learned[0] * layer.learned[1]
            total += layer.rank * sum(matrix_form(layer.shape))
            total += {"wavg": k, "emb": 24, "mlp": 24}.get(layer.mixing, 0)
            if layer.mixing in ("emb", "mlp"):
                maps.add((k, layer.mixing))
        total += sum(25 * k + 25 * 24 * (mixing == "mlp") for k, mixing in maps)
    return total


WRN_28_10 = (
    [(16, 3, 3, 3)]
    + [(160, 16, 3, 3), (160, 160, 3, 3), (160, 16, 1, 1)] + [(160, 160, 3, 3)] * 6
    + [(320, 160, 3, 3), (320, 320, 3, 3), (320, 160, 1, 1)] + [(320, 320, 3, 3)] * 6
    + [(640, 320, 3, 3), (640, 640, 3, 3), (640, 320, 1, 1)] + [(640, 640, 3, 3)] * 6
    + [(100, 640)]
)  # fmt: skip


def wide_resnet(budget, **scheme):
    layers = [LayerSpec(f"{i}", shape, "conv2d") for i, shape in enumerate(WRN_28_10)]
    group_of = assign_groups(layers, "single")
    return allocate(layers, group_of, parse_budget(budget), 36_536_884, Scheme(**scheme))  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", ["0.005", "0.01", "0.05", "0.1", "0.5", "1", "1.5", "2", "4"])
def test_wide_resnet_uses_its_budget_to_the_last_parameter(budget):
    plan = wide_resnet(budget)
    assert plan.budget.used == plan.budget.allowed
    assert plan.unread == 0


def test_layers_of_one_size_rotate_over_the_bank():
    """The released layout gives all seven largest layers the same templates at 200%."""
    plan = wide_resnet("2")
    largest = [layer.templates for layer in plan.layers if layer.shape == (640, 640, 3, 3)]
    assert len(set(largest)) == 3  # a bank of 73.1M holds two and a half regions of 29.5M
    assert max(Counter(largest).values()) == 3


def test_bank_parameters_are_read_evenly():
    """Twenty regions of 30 over a bank of 200: three reads a value on average."""
    spans, bank = [30] * 20, 200
    reads = [0] * bank
    for start in place_spans(spans, bank):
        for i in range(start, start + 30):
            reads[i] += 1
    assert sum(reads) == 600
    assert min(reads) >= 2 and max(reads) <= 5  # a flush region overlaps its neighbour


def test_a_tiny_network_has_a_floor_and_names_it():
    layers = [LayerSpec("a", (8, 8), "linear"), LayerSpec("b", (8, 8), "linear")]
    with pytest.raises(ValueError, match=r"needs at least 26 \(10 unshared, 16 .*budget=0.026K"):
        allocate(layers, assign_groups(layers, "single"), parse_budget("10%"), 138, Scheme())


def test_a_resized_layer_alone_in_its_group_reads_its_whole_bank():
    """Also where the bank that its source map fills would be given another map."""
    for allowed in range(8170, 8180):
        layers = [LayerSpec("a", (256, 64, 1, 1), "conv2d")]
        request = Budget(absolute=allowed)
        plan = allocate(layers, assign_groups(layers, "shape"), request, 16_384, Scheme())
        assert plan.unread == 0
