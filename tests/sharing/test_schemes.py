"""Fixed coefficients, low-rank corrections, groups by names, and the presets made of them."""

import copy
import math
import re
from pathlib import Path

import npas.configs
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_matrix import (
    agrees_with_the_naive_form,
    first_gradients,
    is_itself_in_every_form,
    keeps_its_budget,
    learns,
    reaches_every_parameter,
)
from torch import nn
from zoo import ZOO

import npas
from npas.sharing.blocks import block_of
from npas.sharing.runtime.init import layer_depths
from npas.sharing.trained.folding import fold, load_folded, save_folded

SCHEMES = [
    {"coefficient_init": "legendre", "train_coefficients": False, "groups": "shape"},
    {"coefficient_init": "cosine", "train_coefficients": False, "low_rank": 1},
    {"coefficient_init": "legendre", "generator": "emb", "low_rank": 2},
    {"low_rank": 2, "groups": "shape", "upsampler": "mask"},
]
BUDGETS = ("50%", "100%", "230%")
LOW = [
    {"generator": "channels", "coefficient_init": "sparse"},
    {"generator": "basis", "groups": "type"},
    {"generator": "hash"},
    {"generator": "factorized", "low_rank": 1},
    {"upsample_templates": 3},
    {"generator": "tiles"},
    {"generator": "mlp"},
]
LOW_BUDGETS = ("20%", "60%", "35%", "80%")
CASES = [
    (specimen, schemes[i % len(schemes)], budgets[i % len(budgets)])
    for schemes, budgets in ((SCHEMES, BUDGETS), (LOW, LOW_BUDGETS))
    for i, specimen in enumerate(ZOO)
]


@pytest.mark.parametrize(
    ("specimen", "scheme", "budget"), CASES, ids=[f"{s.name}-{b}-{o}" for s, o, b in CASES]
)
def test_every_network_keeps_what_is_promised(specimen, scheme, budget, tmp_path):
    asked = budget
    try:
        model = npas.share(specimen.make(), budget, **scheme)
    except ValueError as error:
        floor = re.search(r"ask for budget=(\S+) or more", str(error))
        assert floor is not None, error
        budget = floor[1]
        model = npas.share(specimen.make(), budget, **scheme)
    inputs, labels = specimen.batch()
    keeps_its_budget(model, specimen.make(), at_floor=budget != asked)
    for name, left in model.named_parameters():
        if name.startswith("npas_left"):  # else its other factor gets no gradient yet
            assert not left.any()
            nn.init.normal_(left, std=0.1)
    reaches_every_parameter(specimen, first_gradients(model, inputs, labels))
    agrees_with_the_naive_form(model, specimen.make(), inputs, labels)
    learns(model, inputs, labels)
    is_itself_in_every_form(model, specimen, inputs, tmp_path)


# --- fixed coefficients


class Block(nn.Module):
    """An attention's and an MLP's matrices, by the names that transformers give them."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)}
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        """Map (N, L, C) to the same."""
        q, k, v = self.attention["qkv"](self.norm(x)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention["proj"](mixed)
        return x + self.mlp["down"](self.mlp["up"](x).relu())


class Transformer(nn.Module):
    """A small language model with a tied head."""

    def __init__(self, layers=5, width=16):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(30, width), nn.Embedding(8, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, tokens):
        """Map tokens (N, 8) to logits (N, 30), of the token behind the last."""
        x = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return (x @ self.tokens.weight.T)[:, -1]


def transformer(**options):
    torch.manual_seed(0)
    return Transformer(**options)


TOKENS = torch.arange(32).remainder(29).view(4, 8)


def weight_of(model, name):
    path, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(path), attribute).detach()


@pytest.mark.parametrize("basis", ["legendre", "cosine"])
def test_coefficients_are_functions_of_depth(basis):
    model = npas.share(
        transformer(), templates=4, groups="place", exclude="@embeddings",
        coefficient_init=basis, train_coefficients=False,
    )  # fmt: skip
    depths = np.linspace(-1, 1, 5)
    if basis == "legendre":
        rows = np.stack([np.polynomial.Legendre.basis(k)(depths) for k in range(4)], axis=1)
    else:
        rows = np.stack([np.cos(k * math.pi * (depths + 1) / 2) for k in range(4)], axis=1)
    rows = np.where(np.abs(rows) < 1e-9, 0.01, rows)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for name, found in model.named_buffers():
        if name.startswith("npas_fixed"):
            np.testing.assert_allclose(found.numpy(), rows, atol=1e-6)
    assert npas.allocation(model).split["coefficients"] == 0
    assert not [name for name, _ in model.named_parameters() if "coefficients" in name]


@pytest.mark.parametrize("basis", ["legendre", "cosine"])
@pytest.mark.parametrize("train", [True, False])
def test_generated_weights_keep_their_spread(basis, train):
    dense = transformer(width=48)
    spreads = {name: float(p.detach().std()) for name, p in dense.named_parameters()}
    model = npas.share(
        transformer(width=48), 1.0, exclude="@embeddings",
        coefficient_init=basis, train_coefficients=train,
    )  # fmt: skip
    for layer in npas.allocation(model).layers:
        found = float(weight_of(model, layer.name).std())
        assert found == pytest.approx(spreads[layer.name], rel=0.15), layer.name


def test_depth_counts_among_the_layers_of_a_group_and_shape():
    plan = npas.plan(transformer(), 1.0, groups="depth:2", exclude="@embeddings")
    depths = {
        layer.name: depth
        for group in plan.groups
        for layer, depth in zip(group.layers, layer_depths(group), strict=True)
    }
    found = [depths[f"blocks.{i}.mlp.up.weight"] for i in range(5)]
    assert found == [-1.0, 0.0, 1.0, -1.0, 1.0]


def test_a_layer_of_its_own_shape_weighs_all_its_templates():
    model = npas.share(
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 9)), 2.5,
        coefficient_init="legendre", train_coefficients=False,
    )  # fmt: skip
    rows = [row for name, rows in model.named_buffers() if "fixed" in name for row in rows]
    assert rows and all((row.abs() > 1e-3).all() for row in rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"generator": "emb", "train_coefficients": False}, "needs generator='wavg'"),
        ({"coefficient_init": "sparse", "train_coefficients": False}, "would leave all but one"),
        (
            {"allocator": "reference", "coefficient_init": "legendre"},
            "which train, resizes one map",
        ),
        ({"allocator": "reference", "low_rank": 1}, "which train, resizes one map"),
        ({"low_rank": -1}, "low_rank=-1 is out of range"),
        ({"upsample_templates": 0}, "from 1 to 10,000"),
        ({"upsample_templates": 2, "upsampler": "mask"}, "leave upsampler and coefficient_init"),
        *(
            ({"generator": name, option: value}, f"{option}={value!r} does not apply to")
            for name in ("hash", "basis", "tiles", "factorized")
            for option, value in (("upsampler", "mask"), ("max_templates", 4), ("templates", 2))
        ),
        ({"upsample_templates": 2, "generator": "channels"}, "upsample_templates=2 does not apply"),
        ({"budget": "4MB", "generator": "hash"}, "no use for more: ask for fewer bytes"),
        ({"generator": "basis", "coefficient_init": "sparse"}, "apply to generator='basis'"),
        ({"generator": "hash", "budget": 2.0}, "no use for more parameters than the layers have"),
        ({"groups": "depth:9"}, "the network has 5 numbered blocks"),
        ({"groups": "depth:0"}, "the network has 5 numbered blocks"),
        ({"exclude": "@middle"}, "choose @embeddings, @first, @last"),
    ],
)
def test_invalid_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        npas.share(transformer(), **{"budget": 0.9, **options})


def test_a_selector_needs_blocks_and_no_embeddings():
    plain = nn.ModuleDict({name: nn.Linear(8, 8) for name in "ab"})
    assert len(npas.plan(plain, 0.9, exclude="@embeddings").layers) == 2
    with pytest.raises(ValueError, match="exclude='@last' selects nothing: no numbered"):
        npas.plan(plain, 0.9, exclude="@last")


# --- low-rank corrections


def test_a_correction_starts_at_nothing_and_then_adds_its_product():
    plain = npas.share(transformer(), 0.6, exclude="@embeddings", templates=None)
    model = npas.share(transformer(), 0.8, exclude="@embeddings", low_rank=2)
    names = [layer.name for layer in npas.allocation(model).layers]
    assert names == [layer.name for layer in npas.allocation(plain).layers]
    before = weight_of(model, names[0]).clone()
    left, right = model.get_parameter("npas_left_0"), model.get_parameter("npas_right_0")
    assert not left.any() and right.any()
    nn.init.normal_(left)
    model.eval()
    torch.testing.assert_close(weight_of(model, names[0]), before + (left @ right).detach())


def test_corrections_are_counted():
    plan = npas.plan(transformer(), 0.8, exclude="@embeddings", low_rank=2)
    shapes = [layer.shape for layer in plan.layers if layer.rank]
    assert plan.split["low_rank"] == sum(2 * (rows + columns) for rows, columns in shapes) > 0
    assert sum(plan.split.values()) == plan.budget.used == plan.budget.allowed
    assert "+ rank 2" in plan.summary()
    # One of a rank that costs as much as the weight is left out.
    high = npas.plan(transformer(), 3.0, exclude="@embeddings", low_rank=9)
    assert {layer.shape for layer in high.layers if not layer.rank} == {(16, 16)}


@pytest.mark.parametrize(
    "options",
    [
        {"coefficient_init": "legendre", "train_coefficients": False},
        {"generator": "wavg", "low_rank": 1},
    ],
    ids=str,
)
def test_folding_keeps_the_outputs(options, tmp_path):
    model = npas.share(transformer(layers=9), 0.5, groups="place", **options).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("npas_left"):
            nn.init.normal_(parameter, std=0.1)
    twin = copy.deepcopy(model)
    folding = fold(model, threshold=0.98)
    assert folding.allocation is not None
    save_folded(model, folding, tmp_path)
    loaded = load_folded(tmp_path, transformer(layers=9)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS), model(TOKENS))
        if not any(folding.tied):  # corrections keep layers apart
            torch.testing.assert_close(model(TOKENS), twin(TOKENS))


# --- presets

PRESETS = {
    "no_embeddings": {"budget": 0.4},
    "sparse_start": {"budget": 0.5},
    "sandwich": {"budget": 0.8},
    "two_depths": {"budget": 0.4},
    "by_place": {"templates": 2},
    "legendre": {"budget": 0.5},
    "cosine": {"templates": 3},
    "low_rank": {"budget": 0.9},
    "channels": {"budget": 0.5},
    "basis": {"budget": 0.3},
    "hashed": {"budget": 0.2},
    "factorized": {"budget": 0.4},
    "tiles": {"budget": 0.3},
    "embedding": {"budget": 0.5},
    "mlp": {"budget": 0.6},
}
FOLDER = Path(npas.configs.__path__[0]) / "sharing"


def preset(name):
    """Return a preset's own keys, those of its base among them."""
    raw = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    bases = [base for base in raw.pop("defaults", []) if base != "ssn"]
    return {k: v for base in bases for k, v in preset(base).items()} | raw


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_shares_within_its_budget(name):
    model = npas.share(transformer(), **PRESETS[name], **preset(name))
    plan = npas.allocation(model)
    assert npas.count_parameters(model) == plan.budget.used <= plan.budget.allowed
    assert plan.budget.allowed - plan.budget.used <= max(plan.budget.allowed // 1000, 25)
    shared = {layer.name for layer in plan.layers}
    assert not shared & {"tokens.weight", "positions.weight"}
    blocks = {block_of(layer.name) for layer in plan.layers}
    ends = set() if name == "sandwich" else {"blocks.0", "blocks.4"}
    assert blocks == {"blocks.1", "blocks.2", "blocks.3", *ends}
    groups = {"two_depths": 2, "by_place": 4, "legendre": 4, "cosine": 4}
    assert len(plan.groups) == groups.get(name, 1)
    model(TOKENS).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.mlp.0.weight", "blocks.3"),
        ("stages.0.1.conv1.weight", "stages.0.1"),
        ("encoder.layer.11.output.weight", "encoder.layer.11"),
        ("0.weight", "0"),
        ("tokens.weight", None),
        ("conv1.weight", None),
    ],
)
def test_a_block_is_known_by_its_number(name, block):
    assert block_of(name) == block
