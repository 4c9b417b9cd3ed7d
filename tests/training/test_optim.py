"""The optimizer and its schedule are the papers', or torch's own."""

import pytest
import torch
from torch import nn
from trained import leaves_nothing_behind

import npas
from npas.config import Config, OptimConfig
from npas.models import InputSpec, wrn
from npas.sharing import no_decay_names, share
from npas.training.optim import advise_on_codebooks, build_optimizer, clip, learning_rate

THEIRS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}


def model():
    return wrn.build(wrn.Config(depth=10, width=1), InputSpec((1, 8, 8), 10))


def rates(steps, epochs=200, steps_per_epoch=5, **optim):
    family = {"family": "digits"}
    optim = {"lr": 0.1, **optim}
    config = Config(
        budget="0.1", epochs=epochs, model=family, task=family, optim=OptimConfig(**optim)
    )
    return [learning_rate(config, step, steps_per_epoch) for step in range(steps)]


def test_the_rate_falls_at_each_milestone_and_warms_up_step_by_step():
    found = rates(200, steps_per_epoch=1, milestones=[60, 120, 160], gamma=0.2)
    at = (0, 59, 60, 119, 120, 160, 199)
    assert [found[epoch] for epoch in at] == pytest.approx(
        [0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008]
    )
    assert rates(12, warmup_epochs=2) == pytest.approx(
        [0.01 * n for n in range(1, 11)] + [0.1, 0.1]
    )


@pytest.mark.parametrize("most", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_as_by_torch(most):
    layer, twin = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(7, 5)
    for each in (layer, twin):
        each(x).square().sum().backward()
    norms_N = torch.stack([p.grad.norm() for p in layer.parameters() if p.grad is not None])
    clip(build_optimizer(layer, OptimConfig()), most, norms_N)
    if most:
        torch.nn.utils.clip_grad_norm_(twin.parameters(), most)
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("decay_norm_bias", [True, False])
def test_what_trains_is_optimized_once_and_what_may_decays(decay_norm_bias):
    shared = share(model(), 0.5, generator="wavg")
    shared.norm.weight.requires_grad_(False)
    exempt = no_decay_names(shared)
    config = OptimConfig(weight_decay=5e-4, decay_norm_bias=decay_norm_bias)
    groups = build_optimizer(shared, config).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups)
    trained = {n: p for n, p in shared.named_parameters() if p.requires_grad}
    assert exempt and decay.keys() == {id(p) for p in trained.values()}
    decaying = {name for name, p in trained.items() if decay[id(p)]}
    assert decaying == (trained.keys() - exempt if decay_norm_bias else {"npas_bank_0"})
    assert len(build_optimizer(model(), OptimConfig()).param_groups) == 1


def adam(name, decay=0.1):
    return OptimConfig(name=name, lr=0.01, momentum=0.8, beta2=0.98, weight_decay=decay)


def sgd(momentum, nesterov):
    settings = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov}
    settings["weight_decay"] = 5e-4
    return OptimConfig(**settings), lambda p: torch.optim.SGD(p, **settings)


CASES = {
    "nesterov": sgd(0.9, True),
    "momentum": sgd(0.9, False),
    "plain": sgd(0.0, False),
    **{
        f"{name}, {decay}": (
            adam(name, decay),
            lambda p, kind=kind, decay=decay: kind(p, 0.01, betas=(0.8, 0.98), weight_decay=decay),
        )
        for name, kind in THEIRS.items()
        for decay in (0.1, 0.0)
    },
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_torchs_also_from_a_state(case):
    config, make = CASES[case]
    ours, plain = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    optimizer, whole = build_optimizer(ours, config), make(plain.parameters())
    for i in range(4):
        if i == 2:
            stored, optimizer = optimizer.state_dict(), build_optimizer(ours, config)
            optimizer.load_state_dict(stored)
        x = torch.randn(7, 5)
        for layer, each in ((ours, optimizer), (plain, whole)):
            each.zero_grad()
            layer(x).square().sum().backward()
            each.step()
    torch.testing.assert_close(ours.weight, plain.weight)
    torch.testing.assert_close(ours.bias, plain.bias)


@pytest.mark.parametrize("config", [OptimConfig(), *map(adam, THEIRS)], ids=["sgd", *THEIRS])
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_went_wrong_leaves_nothing_behind(config, before):
    layer = torch.nn.Linear(5, 3)
    leaves_nothing_behind(layer, layer.weight, config, torch.randn(7, 5), before)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_schedules_end_at_min_lr(schedule):
    keys = {"lr": 1.0, "min_lr": 0.1, "warmup_epochs": 0.2, "decay_fraction": 0.25}
    found = rates(101, epochs=2, steps_per_epoch=50, schedule=schedule, **keys)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[100] == pytest.approx(0.1)
    assert found[55] == pytest.approx({"linear": 0.55, "cosine": 0.55, "wsd": 1.0}[schedule])
    if schedule == "wsd":
        assert found[75] == 1.0 and found[88] == pytest.approx(0.1 + 0.9 * 0.48)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adamax"])
def test_rates_of_banks_and_coefficients_follow_the_schedule(name):
    shared = share(model(), budget=0.5, generator="wavg")
    own = {"bank_lr": 0.02, "coefficient_lr": 0.05}
    optimizer = build_optimizer(shared, OptimConfig(name=name, lr=0.1, **own))
    names = {id(p): name for name, p in shared.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            part = names[id(parameter)]
            expected = 0.2 if "bank" in part else 0.5 if part.startswith("npas_") else 1.0
            assert group["factor"] == pytest.approx(expected), part
    plain = build_optimizer(shared, OptimConfig(name=name, lr=0.1))
    assert {group["factor"] for group in plain.param_groups} == {1.0}


@pytest.mark.filterwarnings("ignore:.*look fresh")
def test_sgd_is_said_to_take_long_steps_in_a_codebook(caplog):
    made = [nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)) for _ in range(2)]
    npas.share(made[0], 0.3, init="fit", generator="codebook")
    npas.share(made[1], 0.3)
    bank = npas.allocation(made[0]).groups[0].bank
    for model, config, is_said in (
        (made[0], OptimConfig(lr=0.1), True),
        (made[0], OptimConfig(lr=0.1, bank_lr=0.01), False),
        (made[0], adam("adamw"), False),
        (made[1], OptimConfig(lr=0.1), False),
    ):
        caplog.clear()
        advise_on_codebooks(model, config)
        assert ("optim.bank_lr to about" in caplog.text) == is_said
        assert f"by about {3200 // bank} weights" in caplog.text or not is_said
