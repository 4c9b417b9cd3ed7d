"""Generators that make all layers in one way: hashed, of a basis, factorized, by channels."""

import itertools
import math

import pytest
import torch
from test_schemes import TOKENS, transformer, weight_of

import npas
from npas.sharing.generators.hashing import HashedBlock, hashed_weight
from npas.sharing.runtime.bank import BankReader, BufferPool


def test_hashed_layers_differ_and_read_every_value_equally_often():
    model = npas.share(transformer(), 0.1, exclude="@embeddings", generator="hash").double()
    layers = npas.allocation(model).layers
    alike = [weight_of(model, la.name).flatten() for la in layers if la.shape == (16, 16)]
    similar = torch.corrcoef(torch.stack(alike)) - torch.eye(len(alike))
    assert float(similar.abs().max()) < 0.5  # 256 values: rows of 32, a few in common
    bank, scale = model.get_parameter("npas_bank_0"), model.get_buffer("npas_scales")
    with torch.no_grad():
        bank.fill_(1)
        scale.fill_(1)
    total = torch.zeros(())
    for layer in layers:
        path, _, attribute = layer.name.rpartition(".")
        total = total + getattr(model.get_submodule(path), attribute).square().sum() / 2
    (times,) = torch.autograd.grad(total, bank)
    even = sum(layer.size for layer in layers) / 32 / -(-len(bank) // 32)
    assert math.floor(even) <= float(times.min())
    assert float(times.max()) <= 2 * math.ceil(even)  # where the last row covers the one before


def test_the_default_is_hashed_rows_below_the_dense_count_and_no_layers_come_out_alike():
    cases = [
        ({"budget": 0.1}, "hash"),
        ({"budget": 0.99, "groups": "type", "low_rank": 1}, "hash"),
        ({"budget": 1}, "wavg"),
        ({"budget": "1M"}, "wavg"),
        ({"budget": "50KB"}, "wavg"),
        ({"budget": 0.5, "coefficient_init": "sparse"}, "wavg"),
        ({"budget": 0.5, "max_templates": 2}, "wavg"),
        ({"budget": 0.5, "allocator": "reference"}, "wavg"),
        ({"templates": 2, "groups": "shape"}, "wavg"),
    ]
    for options, generator in cases:
        assert npas.plan(transformer(), **options).scheme.generator == generator, options
    model = npas.share(transformer(), 0.1)
    weights = [weight_of(model, layer.name).flatten() for layer in npas.allocation(model).layers]
    for i, one in enumerate(weights):
        assert not any(torch.equal(one, other) for other in weights[:i])


def test_channels_start_as_the_layers_coefficients_would():
    found = {}
    for generator in ("wavg", "channels"):
        model = npas.share(
            transformer(), "12K", groups="shape", exclude="@embeddings", generator=generator
        )
        found[generator] = {p.name: p for p in npas.allocation(model).layers}
        for layer in npas.allocation(model).layers:
            spread = float(weight_of(model, layer.name).std())
            dense = float(transformer().get_parameter(layer.name).detach().std())
            assert spread == pytest.approx(dense, rel=0.25), layer.name
    learned = [layer.learned for layer in found["channels"].values() if layer.learned[0]]
    assert learned and all(k >= 1 and rows in (16, 48, 64) for k, rows in learned)


def test_factorized_layers_share_nothing_and_a_basis_is_read_by_all():
    plans = {
        generator: npas.plan(transformer(), 0.2, exclude="@embeddings", generator=generator)
        for generator in ("factorized", "basis")
    }
    read = [interval for layer in plans["factorized"].layers for interval in layer.intervals]
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(read))
    assert {layer.templates for layer in plans["basis"].layers} == {(0,)}
    for plan in plans.values():
        assert plan.budget.allowed - plan.budget.used <= len(plan.layers)


def test_the_smallest_layers_are_not_factorized():
    blocks = [torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()) for _ in range(6)]
    model = torch.nn.Sequential(torch.nn.Linear(3, 64), *blocks, torch.nn.Linear(64, 2))
    for budget, expected in ((0.1, set()), (0.2, {"7.weight"}), (0.5, {"0.weight", "7.weight"})):
        plan = npas.plan(model, budget, generator="factorized")
        whole = [layer for layer in plan.layers if layer.upsampler is None]
        assert {layer.name for layer in whole} == expected
        assert sum(layer.size for layer in whole) <= plan.budget.allowed / 30


def test_several_maps_make_upsampled_layers_differ():
    for maps, alike in ((1, True), (4, False)):
        model = npas.share(
            transformer(), 0.1, exclude="@embeddings", generator="wavg", upsample_templates=maps
        )
        plan = npas.allocation(model)
        names = [la.name for la in plan.layers if la.upsampler and la.shape == (64, 16)]
        one, other = (weight_of(model, name) for name in names[:2])
        assert torch.equal(one, other) == alike
        assert plan.unread == 0


@pytest.mark.parametrize(
    "options",
    [
        *({"generator": name} for name in ("hash", "basis", "channels", "tiles", "factorized")),
        {"low_rank": 2},
    ],
    ids=str,
)
def test_weights_generated_again_have_the_same_gradients(options):
    found = []
    for recompute in (False, True):
        model = npas.share(
            transformer(), 0.7, exclude="@embeddings", recompute=recompute, **options
        )
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.startswith("npas_left"):  # else its other factor gets no gradient yet
                torch.nn.init.normal_(parameter)
        model(TOKENS).log_softmax(-1)[:, 0].sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bank", [20, 64, 70, 100])
def test_hashed_reading_passes_gradcheck(bank):
    values = torch.randn(bank, dtype=torch.float64, requires_grad=True)
    scales = torch.tensor([[0.5], [2.0]], dtype=torch.float64)

    def read(values):
        blocks = [
            HashedBlock((i,), 12 * n, ((0, i),), ((4, 3 * n),), first)
            for i, (n, first) in enumerate([(7, 0), (5, 84)])
        ]
        reader = BankReader(values, BufferPool())
        return tuple(reader.mix(reader.weights(blocks, [scales], values.dtype), blocks, [scales]))

    assert torch.autograd.gradcheck(read, values)
    if bank == 20:  # where most values are read twice; it takes seconds
        assert torch.autograd.gradgradcheck(read, values)
    for weight, (size, first, scale) in zip(read(values), ((84, 0, 0.5), (60, 84, 2)), strict=True):
        plain = hashed_weight(values, len(values), size, first) * scale
        torch.testing.assert_close(weight.flatten(), plain)


def test_what_one_group_leaves_over_goes_to_groups_with_room():
    torch.manual_seed(0)
    sides = ((9, 24), (6, 24), (11, 6), (6, 11), (7, 6), (23, 7))
    for generator, budget in itertools.product(
        ("hash", "basis", "tiles", "factorized"), range(70, 100, 2)
    ):
        model = torch.nn.ModuleList(torch.nn.Linear(*side, bias=False) for side in sides)
        plan = npas.plan(model, budget / 100, generator=generator, groups="shape")
        assert 0 <= plan.budget.allowed - plan.budget.used <= len(plan.layers), (generator, budget)


@pytest.mark.parametrize("budget", ["5KB", "15KB", "22KB"])
def test_a_hashed_network_fits_its_bytes(budget):
    plan = npas.plan(transformer(), budget, generator="hash")
    assert npas.sharing.price(transformer(), plan, npas.Packing()) <= int(budget[:-2]) * 1000
    assert plan.scheme.generator == "hash" and plan.unread == 0


def test_a_plan_says_where_it_mixes_in_place_of_hashing():
    torch.manual_seed(0)
    model = torch.nn.ModuleList(torch.nn.Linear(20, 20, bias=False) for _ in range(2))
    for budget, hashes in ((0.79, False), (0.7, True)):
        table = npas.plan(model, f"{budget}K", generator="hash").table()
        assert ("no hash  group all reads plain templates" in table) != hashes
