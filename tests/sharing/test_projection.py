"""Dense weights are brought into banks by least squares: exactly where they fit, else nearest."""

import copy
from typing import Any

import pytest
import torch
from tiny import Mlp, outputs, shared
from torch import Tensor, nn
from zoo import ZOO, Residual, Specimen, Tied

import npas
from npas.sharing import project
from npas.sharing.allocation import Allocation
from npas.sharing.layers import PREFIX


class Stack(nn.Module):
    """Layers of one shape."""

    def __init__(self, layers: int, width: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])


def dense(model: nn.Module) -> dict[str, Tensor]:
    """Return what a shared network generates."""
    return npas.materialize(copy.deepcopy(model)).state_dict()


def drawn(make: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def relative(model: nn.Module, state: dict[str, Tensor]) -> float:
    """Measure the error of all shared layers by hand."""
    found, plan = dense(model), npas.allocation(model)
    names = [layer.name for layer in plan.layers if layer.templates]
    wrong = sum((found[name] - state[name]).double().square().sum() for name in names)
    return float((wrong / sum(state[name].double().square().sum() for name in names)).sqrt())


@pytest.mark.parametrize("generator", ["emb", "avg"])
@pytest.mark.parametrize("upsampler", ["inter", "repeat", "mask", "wavg"])
@pytest.mark.parametrize("budget", [0.07, 0.3, 0.9])
def test_what_an_equal_network_generates_is_found_again(
    budget: float, upsampler: str, generator: str
) -> None:
    options = {"generator": generator, "upsampler": upsampler}
    source, ours = (shared(budget, **options) for _ in range(2))
    with torch.no_grad():
        ours.get_parameter("npas_bank_0").normal_()
    found = project(ours, dense(source), steps=200)
    assert found.error < 1e-4
    assert relative(ours, dense(source)) < 1e-4
    assert torch.allclose(outputs(ours), outputs(source), atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_free_coefficients_are_found_again_too(seed: int) -> None:
    source = npas.share(drawn(lambda: Stack(9), 0), templates=4, seed=7)
    ours = npas.share(drawn(lambda: Stack(9), 1), templates=4, seed=seed)
    found = project(ours, dense(source))
    assert found.error < 1e-5 and relative(ours, dense(source)) < 1e-4  # rounded to fp32


@pytest.mark.parametrize("templates", [1, 2, 5])
@pytest.mark.parametrize("layers", [6, 9])
def test_layers_of_one_shape_come_as_near_as_their_singular_values_allow(
    layers: int, templates: int
) -> None:
    state = drawn(lambda: Stack(layers), 3).state_dict()
    ours = npas.share(drawn(lambda: Stack(layers), 1), templates=templates)
    (group,) = npas.allocation(ours).groups
    assert group.bank == templates * 144
    singular = torch.linalg.svdvals(torch.stack([w.flatten() for w in state.values()]).double())
    best = float((singular[templates:].square().sum() / singular.square().sum()).sqrt())
    found = project(ours, state, rounds=500)
    assert best <= found.error + 1e-6 and found.error < best + 1e-3
    assert found.error == pytest.approx(relative(ours, state), abs=1e-5)


def test_more_templates_come_nearer_and_as_many_as_layers_are_exact() -> None:
    state = drawn(lambda: Stack(6), 3).state_dict()
    errors = [
        project(npas.share(Stack(6), templates=k), state, rounds=100).error for k in range(1, 7)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.8 and errors[-1] < 1e-6


def test_a_larger_budget_comes_nearer() -> None:
    state = drawn(Residual, 3).state_dict()
    errors = [project(shared(budget), state).error for budget in (0.05, 0.3, 0.9, 2.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("upsampler", ["inter", "repeat", "mask", "wavg"])
def test_no_bank_is_nearer_than_the_one_found(upsampler: str) -> None:
    state = drawn(Residual, 3).state_dict()
    ours = shared(0.08, upsampler=upsampler, generator="avg")
    best = project(ours, state, steps=500).error
    bank = ours.get_parameter("npas_bank_0")
    for seed in range(5):
        with torch.no_grad():
            step = torch.randn(bank.shape, generator=torch.Generator().manual_seed(seed))
            bank += 1e-3 * step
            assert relative(ours, state) > best - 1e-7
            bank -= 1e-3 * step


@pytest.mark.parametrize("budget", [0.15, 0.6, 1.5])
@pytest.mark.parametrize("specimen", ZOO, ids=lambda s: s.name)
def test_every_kind_of_layer(specimen: Specimen, budget: float) -> None:
    torch.manual_seed(1)
    state = specimen.make().state_dict()
    torch.manual_seed(2)
    try:
        ours = npas.share(specimen.make(), budget, groups="type")
    except ValueError:  # below the floor
        ours = npas.share(specimen.make(), 0.5, groups="type")
    found = project(ours, state)
    assert not found.fresh and 0 <= found.error < 1
    assert found.error == pytest.approx(relative(ours, state), abs=1e-4)
    plan: Allocation = npas.allocation(ours)
    assert list(found.errors) == [layer.name for layer in plan.layers if layer.templates]
    generated = dense(ours)
    assert all(torch.equal(generated[name], state[name]) for name in found.copied)
    assert found.errors.keys() | set(found.copied) <= state.keys()


def test_layers_that_stay_ordinary_and_all_that_is_not_shared_are_copied() -> None:
    state = drawn(Residual, 3).state_dict()
    state["stage1.0.norm.running_mean"] += 1
    ours = shared(0.5, groups="shape")
    ordinary = {layer.name for layer in npas.allocation(ours).layers if not layer.templates}
    found = project(ours, state)
    assert ordinary and ordinary <= set(found.copied)
    assert {"head.bias", "stage1.0.norm.running_mean"} <= set(found.copied)
    own = ours.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in found.copied)
    assert not [name for name in found.copied if name.startswith(PREFIX)]


def test_what_the_given_weights_lack_stays_fresh_and_is_named() -> None:
    state = drawn(Residual, 3).state_dict()
    ours = shared(0.5, exclude="head.weight")
    before = {name: ours.state_dict()[name].clone() for name in ("head.weight", "head.bias")}
    state["head.weight"] = state["head.weight"][:3]
    del state["head.bias"]
    assert project(ours, state).fresh == ["head.weight", "head.bias"]
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in before.items())


def test_groups_do_not_depend_on_each_other() -> None:
    groups = {"stage1.*": "one", "stage2.*": "two"}
    state = drawn(Residual, 3).state_dict()
    one, other = (shared(0.4, groups=groups) for _ in range(2))
    project(one, state)
    for name in [name for name in state if name.startswith("stage2.")]:
        if state[name].ndim > 1:
            state[name] = state[name] * 2
    project(other, state)
    assert torch.equal(one.get_parameter("npas_bank_0"), other.get_parameter("npas_bank_0"))
    assert not torch.equal(one.get_parameter("npas_bank_1"), other.get_parameter("npas_bank_1"))


def test_the_same_weights_each_time_and_none_of_them_lost() -> None:
    state = drawn(Residual, 3).state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    one, other = (shared(0.2) for _ in range(2))
    project(one, state)
    project(other, state)
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.named_parameters()
    )
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    assert all(p.requires_grad for p in one.parameters())


def test_a_tied_weight_may_come_under_any_of_its_names() -> None:
    torch.manual_seed(1)
    state = Tied().state_dict()
    torch.manual_seed(2)
    ours = npas.share(Tied(), 0.9)
    whole = project(copy.deepcopy(ours), state)
    (first,) = {
        name for name in state for other in state
        if name < other and state[name].data_ptr() == state[other].data_ptr()
    }  # fmt: skip
    one = project(ours, {name: value for name, value in state.items() if name != first})
    assert one.error == whole.error and not one.fresh


def test_half_precision_weights_are_taken() -> None:
    state = {name: t.bfloat16() for name, t in drawn(Mlp, 3).state_dict().items()}
    ours = npas.share(drawn(Mlp, 1), 2.0)
    assert project(ours, state).error < 1e-5
    assert ours.get_parameter("npas_bank_0").dtype == torch.float32


def test_kept_weights_are_made_anew() -> None:
    ours = shared(0.5)
    before = outputs(ours.eval())
    project(ours, drawn(Residual, 3).state_dict())
    assert not torch.equal(outputs(ours), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: None, r"there is no tensor stage1\.0\.conv1\.weight, which the network shares"),
        (lambda w: w[:2], r"has shape \[2, 8, 3, 3\] there and \[8, 8, 3, 3\] in the network"),
        (lambda w: w * float("nan"), "is not finite there"),
    ],
)
def test_what_cannot_be_projected_is_one_line_and_changes_nothing(change: Any, said: str) -> None:
    state = drawn(Residual, 3).state_dict()
    changed = change(state.pop("stage1.0.conv1.weight"))
    state |= {} if changed is None else {"stage1.0.conv1.weight": changed}
    ours = shared(0.5)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=said) as error:
        project(ours, state)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_a_network_that_shares_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not shared"):
        project(Residual(), {})
