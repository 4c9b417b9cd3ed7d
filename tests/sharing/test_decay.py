"""Weight decay reaches banks and matrices, and neither coefficients nor, unasked, norms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from zoo import Residual

import npas

Optimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "AdamW": torch.optim.AdamW,
    "Adafactor": torch.optim.Adafactor,
}


def network(**options):
    """Return a shared network with every kind of shared tensor and an unshared matrix."""
    return npas.share(
        Residual(), 0.1, generator="emb", upsampler="mask", exclude="head*", **options
    )


def decayed(model, optimizer):
    """Name what one step moves where all gradients are zero."""
    with torch.no_grad():
        for parameter in model.parameters():  # a norm's bias of zeros would not show its decay
            parameter.add_(0.5)
            parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("decay_norm_bias", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_moves_banks_and_matrices_alone(optimizer, decay_norm_bias):
    model = network()
    groups = npas.param_groups(model, 0.1, lr=0.5, decay_norm_bias=decay_norm_bias)
    names = {name for name, _ in model.named_parameters()}
    norms = {name for name in names if not name.startswith("npas_")} - {"head.weight"}
    expected = {"npas_bank_0", "head.weight"} | (norms if decay_norm_bias else set())
    assert norms and len(names - norms - expected) > 2
    assert decayed(model, OPTIMIZERS[optimizer](groups)) == expected
    optimized = [id(p) for group in groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in model.parameters())
    assert {group["lr"] for group in groups} == {0.5}


def test_muon_gets_the_matrices_that_are_not_shared_and_another_optimizer_all_else():
    model = nn.ModuleDict({"words": nn.Embedding(9, 8), "body": network()})
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in wanted]
    matrices = npas.param_groups(model, 0.1, matrices=True)
    ((head,),) = (group["params"] for group in matrices)
    assert head is model["body"].head.weight  # type: ignore[union-attr]
    others = npas.param_groups(model, 0.1, lr=0.01, matrices=False)
    optimizers = torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(others)
    for optimizer in optimizers:
        optimizer.step()
    assert not any(torch.equal(*pair) for pair in zip(wanted, before, strict=True))
    with pytest.raises(ValueError, match=r"no unshared matrix, and torch\.optim\.Muon"):
        npas.param_groups(npas.share(Residual(), 0.1), 0.1, matrices=True)


def test_banks_and_what_else_is_shared_may_have_rates_of_their_own():
    model = network()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = npas.param_groups(model, 0.1, lr=0.5, bank_lr=0.25, coefficient_lr=0.05)
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        shared = 0.25 if "npas_bank" in name else 0.05
        assert rate == (shared if name.startswith("npas_") else 0.5), name
    unnamed = npas.param_groups(model, 0.1, bank_lr=0.25)
    assert {group.get("lr") for group in unnamed} == {None, 0.25}
    refused = [(key, bad) for key in ("lr", "bank_lr", "coefficient_lr") for bad in (-1, 0)]
    refused += [("decay_norm_bias", "no"), ("matrices", "no"), ("weight_decay", None)]
    for key in ("lr", "bank_lr", "coefficient_lr", "weight_decay"):
        refused += [(key, bad) for bad in (-1, math.nan, math.inf, "x", True, [0.1])]
    for key, bad in refused:
        with pytest.raises(ValueError, match=f"^{key}(=| must be )"):
            npas.param_groups(model, **{"weight_decay": 0.1, key: bad})
    assert npas.param_groups(model, 0, lr=torch.tensor(0.1))[0]["weight_decay"] == 0


def test_names_tell_also_where_a_network_is_a_part():
    model = network()
    exempt = npas.sharing.no_decay_names(model)
    kinds = {name.split("_")[1] for name in exempt}
    assert kinds == {"embeddings", "affine", "shift", "upsampler"}
    whole = nn.ModuleDict({"npas_part": nn.ModuleDict({"body": model})})
    assert npas.sharing.no_decay_names(whole) == {f"npas_part.body.{name}" for name in exempt}


def test_a_dense_network_goes_by_dimensions_and_what_is_frozen_is_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decays, others = npas.param_groups(model, 0.1)
    assert decays == {"params": [model[0].weight], "weight_decay": 0.1}
    assert others["weight_decay"] == 0 and len(others["params"]) == 3
    model[1].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    assert len(npas.param_groups(model, 0.1)) == 1


def test_with_the_released_layout_upsamplers_decay_too():
    model = npas.share(Residual(), 0.1, upsampler="mask", allocator="reference")
    wrapped = nn.Sequential(model)
    names = {name for name, _ in wrapped.named_parameters() if "npas_" in name}
    names -= npas.sharing.no_decay_names(wrapped)
    assert {name.split("_")[1] for name in names} == {"bank", "upsampler"}
