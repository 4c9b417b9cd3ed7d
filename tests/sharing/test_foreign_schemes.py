"""Ways to share of other packages and scripts: the engine keeps the budget, and checks them."""

import copy
import itertools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from test_schemes import TOKENS, transformer, weight_of
from torch import nn

import npas
from npas.sharing.generators import schemes
from npas.sharing.layout.allocation import Allocation
from npas.utils import plugins


def tiled(values, learned, shape, first):
    size = math.prod(shape)
    return values.roll(first).repeat(-(-size // len(values)))[:size]


def gains(values, learned, shape, first):
    return tiled(values, learned, shape, first).view(shape[0], -1) * learned


def mixed(values, learned, shape, first):
    """Mix pieces of 16 values, as many as there are, for every 16 of the weight."""
    pieces = torch.nn.functional.pad(values, (0, -len(values) % 16)).view(-1, 16)
    return (learned @ pieces).flatten()[: math.prod(shape)]


def drawn(shape, rng):
    return torch.rand(shape, generator=rng) / 5 + 0.9


OWN = {
    "strips": (lambda shape, values: (0, 0), drawn, tiled),
    "gains": (lambda shape, values: (shape[0], 1), drawn, gains),
    "copies": (
        lambda shape, values: (-(-math.prod(shape) // values), 1),
        drawn,
        lambda values, learned, shape, first: (learned * values).flatten()[: math.prod(shape)],
    ),
    "mixes": (
        lambda shape, values: (-(-math.prod(shape) // 16), -(-values // 16)),
        lambda shape, rng: torch.randn(shape, generator=rng),
        mixed,
    ),
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {kind: {} for kind in plugins.OFFERS})
    monkeypatch.setattr(schemes, "_found", {})
    for name, functions in OWN.items():
        register(name, *functions)


def register(name, learned, initial, weight):
    parts = {"learned": learned, "initial": initial, "weight": weight}
    npas.register_scheme(name, SimpleNamespace(**parts))


@pytest.mark.parametrize("name", OWN)
def test_the_budget_is_kept_to_the_parameter_and_read_whole(name):
    for groups, budget in itertools.product(("single", "shape"), (0.06, 0.1, 0.25, 0.5, 0.9, 1.0)):
        try:
            plan = npas.plan(transformer(), budget, groups=groups, generator=name)
        except ValueError as error:
            assert "at least" in str(error) or (name == "mixes" and "large steps" in str(error))
            asked = re.search(r"ask for budget=(\S+)", str(error))
            assert asked is not None, error
            plan = npas.plan(transformer(), asked[1], groups=groups, generator=name)
        left = plan.budget.allowed - plan.budget.used
        assert 0 <= left <= max(plan.budget.allowed // 1000, len(plan.layers)), (groups, budget)
        assert plan.unread == 0
        assert Allocation.from_dict(plan.to_dict()) == plan
    with pytest.raises(ValueError, match="no use for more parameters"):
        npas.plan(transformer(), 2.0, generator=name)


@pytest.mark.parametrize("name", OWN)
def test_it_trains_and_is_itself_saved_loaded_and_materialized(name, tmp_path):
    budget: float | str = 0.3
    if name == "mixes":
        with pytest.raises(ValueError, match="large steps") as refused:
            npas.plan(transformer(), budget, generator=name)
        budget = str(refused.value).rpartition("=")[2]
    gradients = []
    for recompute in (False, True):
        model = npas.share(transformer(), budget, generator=name, recompute=recompute)
        model(TOKENS).log_softmax(-1)[:, 0].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None and gradient.any(), key
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-4, atol=1e-5)
    for layer in npas.allocation(model).layers:
        dense = float(transformer().get_parameter(layer.name).detach().std())
        assert float(weight_of(model, layer.name).std()) == pytest.approx(dense, rel=0.3)
        assert layer.how == name or not layer.templates
    torch.optim.SGD(model.parameters(), 0.1).step()
    expected = model.eval()(TOKENS)
    npas.save(model, tmp_path)
    loaded = npas.load(tmp_path, transformer()).eval()
    for other in (loaded, copy.deepcopy(model), npas.materialize(loaded)):
        torch.testing.assert_close(other(TOKENS), expected, rtol=0, atol=0)
    npas.write_artifact(model, tmp_path / "small.npas")
    npas.read_artifact(tmp_path / "small.npas", transformer())


def test_what_was_stored_says_which_package_it_needs(tmp_path, monkeypatch):
    npas.save(npas.share(transformer(), 0.3, generator="gains"), tmp_path)
    npas.write_artifact(npas.load(tmp_path, transformer()), tmp_path / "small.npas")
    monkeypatch.setattr(plugins, "_registered", {kind: {} for kind in plugins.OFFERS})
    monkeypatch.setattr(schemes, "_found", {})
    for read in (
        lambda: npas.load(tmp_path, transformer()),
        lambda: npas.read_artifact(tmp_path / "small.npas", transformer()),
    ):
        with pytest.raises(ValueError) as refused:
            read()
        assert "'gains' is not one of npas: install the package that brings it" in str(
            refused.value
        )
    register("gains", lambda shape, values: (1, 1), drawn, gains)  # another version of it
    with pytest.raises(ValueError, match="generator='gains' is another version"):
        npas.load(tmp_path, transformer())


def one(shape, values):
    return (1, 1)


WRONG = {
    "learned must return two whole numbers": (lambda shape, values: (0, 3), drawn, tiled),
    "returned None": (lambda shape, values: None, drawn, tiled),
    r"initial must return a tensor of shape \(1, 1\)": (one, lambda s, r: torch.ones(2), tiled),
    "finite values that do not start at zero, not 10": (one, drawn, lambda v, m, s, f: v[:10]),
    "start at zero, not 480 such as": (
        one, lambda s, r: torch.zeros(s), lambda v, m, s, f: tiled(v, m, s, f) * m
    ),
    r"cannot be made \(AttributeError": (one, drawn, lambda v, m, s, f: "no tensor"),
    r"cannot be made \(ZeroDivisionError": (one, drawn, lambda v, m, s, f: 1 / 0),
    r"must have the dtype of its values, torch\.float32": (
        one, drawn, lambda v, m, s, f: tiled(v, m, s, f).double()
    ),
    "and their gradients": (one, drawn, lambda v, m, s, f: tiled(v, m, s, f).detach()),
    "twice the values must be twice": (one, drawn, lambda v, m, s, f: tiled(v, m, s, f).sin()),
    "leaves 1 of the .* unread": (
        one, drawn, lambda v, m, s, f: tiled(torch.cat([v[1:], v[1:2]]), m, s, f)
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_a_scheme_that_does_not_keep_its_promise_is_refused_in_one_line(line):
    register("wrong", *WRONG[line])
    model = transformer()
    with pytest.raises(ValueError, match=line) as refused:
        npas.share(model, 0.3, generator="wrong")
    assert "\n" not in str(refused.value)


def test_names_and_parts_are_checked():
    with pytest.raises(ValueError, match="'hash' is a scheme of npas itself"):
        npas.register_scheme("hash", SimpleNamespace())
    with pytest.raises(ValueError, match="the scheme 'half' lacks initial and weight"):
        npas.register_scheme("half", SimpleNamespace(learned=one))
    for name in (3, "", "a b"):
        with pytest.raises(ValueError, match="register_scheme needs a name such as"):
            npas.register_scheme(name, SimpleNamespace())
    parts = {"learned": one, "initial": drawn, "weight": tiled}
    with pytest.raises(ValueError, match="'kind' is a class: give an instance"):
        npas.register_scheme("kind", type("Kind", (), parts))
    with pytest.raises(ValueError, match=r"choose avg, wavg, .*gains"):
        npas.share(nn.Linear(8, 8), 0.5, generator="gain")
    for keys in ({"templates": 2}, {"upsample_templates": 2}, {"coefficient_init": "sparse"}):
        budget = None if "templates" in keys else 0.5
        with pytest.raises(ValueError, match="'gains'"):
            npas.share(transformer(), budget, generator="gains", **keys)  # type: ignore[arg-type]
