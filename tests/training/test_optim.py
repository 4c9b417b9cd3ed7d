"""The optimizer and its schedule are the papers'."""

import pytest
import torch

from npas.config import OptimConfig
from npas.models import InputSpec, wrn
from npas.sharing import no_decay_names, share
from npas.training.optim import build_optimizer, learning_rate


def model() -> torch.nn.Module:
    return wrn.build(wrn.Config(depth=10, width=1), InputSpec((1, 8, 8), 10))


def test_the_rate_falls_to_a_fifth_at_each_milestone() -> None:
    config = OptimConfig(lr=0.1, milestones=[60, 120, 160], gamma=0.2)
    rates = [learning_rate(config, epoch * 10 + 9, 10) for epoch in (0, 59, 60, 119, 120, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008])


def test_the_rate_warms_up_step_by_step() -> None:
    config = OptimConfig(lr=0.1, warmup_epochs=2)
    rates = [learning_rate(config, step, 5) for step in range(12)]
    assert rates == pytest.approx([0.01 * n for n in range(1, 11)] + [0.1, 0.1])


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
    for _ in range(4):
        x = torch.randn(7, 5)
        for layer, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)
    torch.testing.assert_close(ours.bias, plain.bias)
