"""Dense weights are brought into banks by least squares: exactly where they fit, else nearest."""

import copy
from typing import Any

import pytest
import torch
from tiny import outputs, shared
from torch import Tensor, nn
from zoo import ZOO, Residual, Specimen

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


@pytest.mark.parametrize("upsampler", ["inter", "repeat", "mask", "wavg"])
@pytest.mark.parametrize(("budget", "generator"), [(0.07, "avg"), (0.3, "emb")])
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


@pytest.mark.parametrize("templates", [1, 2, 5, 6])
@pytest.mark.parametrize("layers", [6])
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


@pytest.mark.parametrize("specimen", ZOO, ids=lambda s: s.name)
def test_every_kind_of_layer(specimen: Specimen, budget: float = 0.4) -> None:
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
