"""The optimizer and its schedule are the papers', or torch's own."""

import copy
from typing import Any

import pytest
import torch

from npas.config import Config, OptimConfig
from npas.models import InputSpec, wrn
from npas.sharing import no_decay_names, share
from npas.training.optim import build_optimizer, clip, learning_rate


def model() -> torch.nn.Module:
    return wrn.build(wrn.Config(depth=10, width=1), InputSpec((1, 8, 8), 10))


def config_of(epochs: int = 200, **optim: Any) -> Config:
    family = {"family": "digits"}
    return Config(
        budget="0.1", epochs=epochs, model=family, task=family, optim=OptimConfig(**optim)
    )


def test_the_rate_falls_to_a_fifth_at_each_milestone() -> None:
    config = config_of(lr=0.1, milestones=[60, 120, 160], gamma=0.2)
    rates = [learning_rate(config, epoch * 10 + 9, 10) for epoch in (0, 59, 60, 119, 120, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008])


def test_the_rate_warms_up_step_by_step() -> None:
    config = config_of(lr=0.1, warmup_epochs=2)
    rates = [learning_rate(config, step, 5) for step in range(12)]
    assert rates == pytest.approx([0.01 * n for n in range(1, 11)] + [0.1, 0.1])


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", [0.1, 0.075, 0.05]), ("cosine", [0.1, 0.0853553, 0.05])]
)
def test_the_rate_comes_down_to_nothing_after_the_warm_up(
    schedule: str, middle: list[float]
) -> None:
    config = config_of(10, lr=0.1, warmup_epochs=0.4, schedule=schedule)
    rates = [learning_rate(config, step, 5) for step in range(51)]
    assert rates[:2] == pytest.approx([0.05, 0.1])
    assert [rates[step] for step in (2, 14, 26)] == pytest.approx(middle)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0)


@pytest.mark.parametrize("most", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_as_by_torch(most: float) -> None:
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


def test_norms_and_biases_can_be_left_without_decay_and_banks_never_are() -> None:
    shared = share(model(), 0.5)
    optimizer = build_optimizer(shared, OptimConfig(weight_decay=5e-4, decay_norm_bias=False))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    names = {n: decay[id(p)] for n, p in shared.named_parameters()}
    assert names["npas_bank_0"] == 5e-4
    assert names["classifier.bias"] == names["norm.weight"] == names["norm.bias"] == 0
    assert {n for n, rate in names.items() if rate} == {"npas_bank_0"}


def test_all_that_trains_is_optimized_once() -> None:
    shared = share(model(), 0.5)
    optimizer = build_optimizer(shared, OptimConfig())
    optimized = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in shared.parameters())


def test_coefficients_do_not_decay_and_all_else_does() -> None:
    shared = share(model(), 0.5)
    exempt = no_decay_names(shared)
    assert exempt
    optimizer = build_optimizer(shared, OptimConfig(weight_decay=5e-4))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in shared.named_parameters():
        assert decay[id(parameter)] == (0 if name in exempt else 5e-4), name


def test_a_dense_network_has_one_group() -> None:
    assert len(build_optimizer(model(), OptimConfig()).param_groups) == 1


def test_frozen_parameters_are_left_out() -> None:
    frozen = model()
    frozen.classifier.requires_grad_(False)
    optimizer = build_optimizer(frozen, OptimConfig())
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(frozen.classifier.weight) not in optimized


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_steps_are_those_of_plain_sgd(momentum: float, nesterov: bool) -> None:
    config = OptimConfig(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=5e-4)
    torch.manual_seed(1)
    ours, plain = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    optimizers = (
        build_optimizer(ours, config),
        torch.optim.SGD(
            plain.parameters(), 0.1, momentum=momentum, nesterov=nesterov, weight_decay=5e-4
        ),
    )
    assert_steps_are_equal(ours, plain, optimizers)


def assert_steps_are_equal(
    ours: torch.nn.Linear, plain: torch.nn.Linear, optimizers: tuple[torch.optim.Optimizer, ...]
) -> None:
    for _ in range(4):
        x = torch.randn(7, 5)
        for layer, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)
    torch.testing.assert_close(ours.bias, plain.bias)


def adam(name: str = "adamw", **changes: float) -> OptimConfig:
    settings = {"lr": 0.01, "beta2": 0.98, "weight_decay": 0.1, "momentum": 0.8} | changes
    return OptimConfig(name=name, **settings)


THEIRS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}


@pytest.mark.parametrize("decay", [0.1, 0.0])
@pytest.mark.parametrize("name", THEIRS)
def test_steps_are_those_of_torchs_adam_and_its_kin(name: str, decay: float) -> None:
    torch.manual_seed(1)
    ours, plain = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    optimizers = (
        build_optimizer(ours, adam(name, weight_decay=decay)),
        THEIRS[name](plain.parameters(), 0.01, betas=(0.8, 0.98), weight_decay=decay),
    )
    assert_steps_are_equal(ours, plain, optimizers)


def test_an_optimizer_of_ours_goes_on_from_its_state() -> None:
    torch.manual_seed(1)
    ours, plain = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    first = build_optimizer(ours, adam("adamax"))
    ours(torch.ones(2, 5)).square().sum().backward()
    first.step()
    again = build_optimizer(ours, adam("adamax"))
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    whole = torch.optim.Adamax(plain.parameters(), 0.01, betas=(0.8, 0.98), weight_decay=0.1)
    plain(torch.ones(2, 5)).square().sum().backward()
    whole.step()
    assert_steps_are_equal(ours, plain, (again, whole))


@pytest.mark.parametrize("config", [OptimConfig(), *map(adam, THEIRS)], ids=["sgd", *THEIRS])
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_went_wrong_leaves_nothing_behind(config: OptimConfig, before: int) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Linear(5, 3)
    optimizer = build_optimizer(layer, config)

    def step(wrong: bool) -> None:
        layer(torch.randn(7, 5)).square().sum().backward()
        if wrong:
            layer.weight.grad.fill_(float("nan"))
        optimizer.found_inf = torch.tensor(float(wrong))
        optimizer.step()
        optimizer.zero_grad()

    def everything() -> list[torch.Tensor]:
        kept = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.clone() for tensor in (*layer.parameters(), *kept)]

    for _ in range(before):
        step(wrong=False)
    held = everything()
    step(wrong=True)
    assert all(torch.equal(a, b) for a, b in zip(held, everything(), strict=True))
    step(wrong=False)
    assert not any(torch.equal(a, b) for a, b in zip(held, everything(), strict=True))


@pytest.mark.parametrize("name", THEIRS)
def test_all_of_an_optimizers_tensors_are_there_before_the_first_step(name: str) -> None:
    layer = torch.nn.Linear(5, 3)
    optimizer = build_optimizer(layer, adam(name))
    kept = {p: {name: id(v) for name, v in optimizer.state[p].items()} for p in layer.parameters()}
    layer(torch.randn(7, 5)).square().sum().backward()
    optimizer.step()
    for parameter, tensors in kept.items():
        assert {name: id(v) for name, v in optimizer.state[parameter].items()} == tensors


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta2": 1.0}, "optim.beta2 must be below 1"),
        ({"beta2": -0.1}, "optim.beta2 must be at least 0"),
    ],
)
def test_betas_out_of_range_are_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adam(**changes)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_schedules_end_at_min_lr(schedule: str) -> None:
    config = config_of(
        2, lr=1.0, min_lr=0.1, schedule=schedule, warmup_epochs=0.2, decay_fraction=0.25
    )
    rates = [learning_rate(config, step, 50) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[100] == pytest.approx(0.1)
    middle = {"linear": 0.55, "cosine": 0.55, "wsd": 1.0}[schedule]
    assert rates[55] == pytest.approx(middle)
    if schedule == "wsd":
        assert rates[75] == 1.0 and rates[88] == pytest.approx(0.1 + 0.9 * 0.48)
