"""The search for groups: one bank, K equal templates, every layer resized from them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import npas
from npas.sharing.api import apply
from npas.sharing.search import plan_search, search_vectors, template_gradients

ORACLE = Path(__file__).parent / "oracle" / "learn_groups_small.npz"


class Mixed(nn.Module):
    """Layers of many kinds and shapes, some of them not shared."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, bias=False) for _ in range(4))
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.wide = nn.Linear(16, 96)
        self.norm = nn.LayerNorm(96)
        self.table = nn.Embedding(20, 16)
        self.places = nn.Parameter(torch.randn(1, 5, 16))
        self.rnn = nn.GRU(16, 8)


def searched(budget=0.5, **options):
    torch.manual_seed(0)
    model = Mixed()
    return apply(model, plan_search(model, budget, **options))


def weights(model):
    return {
        layer.name: getattr(model.get_submodule(owner), leaf)
        for layer in npas.allocation(model).layers
        for owner, _, leaf in [layer.name.rpartition(".")]
    }


def test_weights_and_gradients_are_the_released_codes():
    arrays = np.load(ORACLE)
    layers = json.loads(str(arrays["meta"]))["layers"]
    model = nn.Module().double()
    for layer in layers:
        shape = layer["shape"]
        conv = layer["kind"] == "SConv2d"
        made = nn.Conv2d(shape[1], shape[0], shape[2]) if conv else nn.Linear(shape[1], shape[0])
        model.add_module(f"layer{layer['i']}", made.double())
    plan = plan_search(model, "0.333K", softmax=True, allocator="reference")
    assert [planned.source for planned in plan.layers] == [tuple(e["in_shape"]) for e in layers]
    apply(model, plan)

    bank = model.get_parameter("npas_bank_0")
    coefficients = model.get_parameter("npas_coefficients_0_4")
    with torch.no_grad():
        bank.copy_(torch.from_numpy(arrays["bank_0"][: len(bank)]))
        coefficients.copy_(torch.from_numpy(np.stack([arrays[f"coef_{e['i']}"] for e in layers])))
    loss = torch.zeros((), dtype=torch.float64)
    for e, weight in zip(layers, weights(model).values(), strict=True):
        expected = torch.from_numpy(arrays[f"w_{e['i']}"])
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-10)
        loss = loss + (weight * torch.from_numpy(arrays[f"ct_{e['i']}"])).sum()
    found = torch.autograd.grad(loss, [bank, coefficients])
    unread = len(arrays["gbank_0"]) - len(bank)
    assert unread < 4 and not arrays["gbank_0"][-unread:].any()
    expected_bank = torch.from_numpy(arrays["gbank_0"][: len(bank)])
    torch.testing.assert_close(found[0], expected_bank, rtol=0, atol=1e-10)
    expected_rows = np.stack([arrays[f"gcoef_{e['i']}"] for e in layers])
    torch.testing.assert_close(found[1], torch.from_numpy(expected_rows), rtol=0, atol=1e-10)


@pytest.mark.parametrize("generator", ["avg", "wavg", "emb"])
@pytest.mark.parametrize("templates", [2, 4, 5])
def test_the_budget_is_kept_to_what_does_not_divide(generator, templates):
    model, allowed_before = Mixed(), 0
    for budget in [*range(1100, 9000, 149), "100%", "300%"]:
        asked = f"{budget / 1000}K" if isinstance(budget, int) else budget
        plan = plan_search(model, asked, generator=generator, templates=templates)
        (group,) = plan.groups
        left = plan.budget.allowed - plan.budget.used
        assert 0 <= left <= max(plan.budget.allowed / 1000, len(plan.layers), templates - 1)
        assert group.bank % templates == 0 and not plan.unread
        assert all(len(layer.templates) == templates for layer in plan.layers)
        assert allowed_before <= plan.budget.allowed <= plan.budget.dense
        allowed_before = plan.budget.allowed
    # More would only be skipped: a template already holds the largest layer.
    largest = max(layer.size for layer in plan.layers)
    assert group.bank <= templates * largest and plan.budget.allowed < plan.budget.dense


def test_a_budget_too_small_names_the_smallest():
    with pytest.raises(ValueError, match=r"needs at least \S+: ask for budget=\S+K or") as error:
        plan_search(Mixed(), "0.2K")
    smallest = str(error.value).split("budget=")[2].split()[0]
    assert plan_search(Mixed(), smallest).budget.used > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"softmax": True}, {"generator": "emb"}, {"generator": "emb", "softmax": True},
     {"generator": "avg"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_weights_start_with_the_spread_of_their_layers(budget, options):
    torch.manual_seed(0)
    dense = {name: p.detach().square().mean() for name, p in Mixed().named_parameters()}
    model = searched(budget, **options)
    found = {name: w.detach().square().mean() for name, w in weights(model).items()}
    ratios = [float(found[name] / dense[name]) for name in found]
    # Layers of one shape share a scale; small ones are small samples.
    assert 0.85 < math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1.15
    assert min(ratios) > 0.5 and max(ratios) < 2


def test_the_vectors_are_the_coefficients_or_the_embeddings():
    model = searched()
    rows = search_vectors(model)
    assert [*rows] == [layer.name for layer in npas.allocation(model).layers]
    assert torch.equal(torch.stack([*rows.values()]), model.get_parameter("npas_coefficients_0_4"))
    assert {row.shape for row in search_vectors(searched(generator="emb")).values()} == {(24,)}
    with pytest.raises(ValueError, match="generator='avg' has no coefficients"):
        search_vectors(searched(generator="avg"))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("generator", ["wavg", "emb"])
def test_all_layers_start_alike_so_that_what_differs_was_learned(generator, softmax):
    model = searched(generator=generator, softmax=softmax)
    rows = torch.stack([*search_vectors(model).values()])
    assert bool((rows == rows[0]).all())
    if generator == "wavg":
        assert rows[0].tolist() == [0.5] * 4


def test_gradients_in_the_template_add_up_to_the_banks():
    """What all layers ask of the template, each by its coefficients, is the bank's gradient."""
    model = searched()
    generated = weights(model)
    wishes = {name: torch.randn_like(w) for name, w in generated.items()}
    loss = sum(((generated[n] * wishes[n]).sum() for n in generated), torch.zeros(()))
    bank = model.get_parameter("npas_bank_0")
    (expected,) = torch.autograd.grad(loss, bank)

    asked, alphas, scales = (
        template_gradients(model, wishes), search_vectors(model), model.get_buffer("npas_scales")
    )  # fmt: skip
    added = torch.zeros_like(bank)
    for layer in npas.allocation(model).layers:
        gradient = asked[layer.name]
        assert len(gradient) == math.prod(layer.source)
        for start, alpha in zip(layer.templates, alphas[layer.name], strict=True):
            added[start : start + len(gradient)] += alpha * scales[layer.scale] * gradient
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)
