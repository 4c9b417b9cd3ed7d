"""`init="fit"`: trained weights are approximated within the exact budget."""

import copy
import warnings

import pytest
import torch
from fits import Blocks, drawn, fitted
from tiny import Mlp, shared
from torch import nn
from zoo import ZOO

import npas
from npas.sharing import price
from npas.sharing.layout.templates import bank_templates

BUDGETS = (0.4, 0.55, 0.7, 0.93)


pytestmark = pytest.mark.filterwarnings("ignore:.*look fresh")  # random weights stand for trained


GENERATORS = ("basis", "codebook")


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("budget", [0.2, *BUDGETS, "0.701K", "1.001K"])
def test_budgets_are_exact_and_every_parameter_is_read(budget, generator):
    model, _ = fitted(drawn(), budget, generator=generator)
    plan = npas.allocation(model)
    assert plan.budget.used == npas.count_parameters(model) <= plan.budget.allowed
    assert plan.budget.allowed - plan.budget.used <= max(plan.budget.allowed // 1000, 6)
    assert plan.unread == 0
    model(torch.randn(2, 12)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if generator == "codebook":  # a zero gradient would mean a row of the bank without a reader
        assert plan.budget.used == plan.budget.allowed and model.npas_bank_0.grad.all()
        kept = sum(t.numel() for name, t in model.state_dict().items() if name != "npas_scales")
        assert kept == plan.budget.used


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
def test_any_network_is_fitted_saved_loaded_and_materialized(specimen, generator, tmp_path):
    torch.manual_seed(0)
    model, state = fitted(specimen.make(), 0.6, generator=generator)
    model.eval()
    plan = npas.allocation(model)
    assert plan.budget.used == npas.count_parameters(model) <= plan.budget.allowed
    npas.save(model, tmp_path)
    again = npas.load(tmp_path, specimen.make()).eval()
    assert npas.allocation(again) == plan
    errors = npas.weight_errors(model, state)
    assert npas.weight_errors(again, state) == errors and errors.all < 0.9
    dense = npas.materialize(copy.deepcopy(model)).state_dict()
    own = npas.materialize(again).state_dict()
    assert all(torch.equal(dense[name], own[name]) for name in dense)


def test_errors_are_those_of_the_generated_weights():
    model, state = fitted(drawn(), 0.5)
    errors = npas.weight_errors(model, state)
    dense = npas.materialize(copy.deepcopy(model)).state_dict()
    for name, error in errors.layers.items():
        wrong = (dense[name] - state[name]).double().norm() / state[name].double().norm()
        assert error == pytest.approx(float(wrong), abs=1e-6)
    whole = sum(float(state[name].double().square().sum()) for name in errors.layers)
    parts = [e * float(state[name].double().norm()) for name, e in errors.layers.items()]
    assert errors.all == pytest.approx((sum(part**2 for part in parts) / whole) ** 0.5)
    message = npas.summary(model)
    assert f"relative error {errors.all:.3g}" in message and "conv.weight" in message
    assert "fit " not in npas.summary(shared(0.5))
    assert npas.plan(drawn(), 0.5, init="fit") == npas.allocation(model)


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_farther_than_layers_of_one_rank_each(budget):
    model, state = fitted(drawn(), budget, generator="basis")
    layers = [state[layer.name].flatten(1) for layer in npas.allocation(model).layers]
    allowed = npas.allocation(model).split
    room = sum(allowed.values()) - sum(p.numel() for p in model.parameters() if p.dim() < 2)
    left = []
    for rank in range(13):
        if sum(rank * (sum(w.shape) - rank) for w in layers) <= room:
            left.append(sum(torch.linalg.svdvals(w)[rank:].square().sum() for w in layers))
    best = float((left[-1] / sum(w.square().sum() for w in layers)).sqrt())
    assert npas.weight_errors(model, state).all <= best
    chosen, _ = fitted(drawn(), budget)  # and the choice between the two is the better one
    errors = [
        npas.weight_errors(fitted(drawn(), budget, generator=g)[0], state) for g in GENERATORS
    ]
    assert npas.weight_errors(chosen, state).all == min(error.all for error in errors)


def low_rank(model, rank):
    with torch.no_grad():
        for layer in model.body:
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_((u[:, :rank] * s[:rank]) @ v[:rank])
    return model


def same_rows(model):
    basis = torch.randn(3, 12)
    with torch.no_grad():
        for layer in model.body:
            layer.weight.copy_(torch.randn(12, 3) @ basis)
    return model


def same_columns(model):
    with torch.no_grad():
        for layer in same_rows(model).body:
            layer.weight.copy_(layer.weight.T.clone())
    return model


def two_templates(model):
    templates = torch.randn(2, 12, 12)
    with torch.no_grad():
        for layer in model.body:
            layer.weight.copy_((torch.randn(2)[:, None, None] * templates).sum(0))
    return model


@pytest.mark.parametrize(
    ("shape", "how"),
    [(same_rows, "by rows"), (same_columns, "by columns"), (two_templates, "wavg")],
)
def test_what_layers_have_in_common_is_found(shape, how):
    model, state = fitted(shape(drawn(make=lambda: Blocks(8))), 0.68)
    errors = npas.weight_errors(model, state)
    assert all(errors.layers[f"body.{i}.weight"] < 1e-5 for i in range(8))
    layers = {layer.name: layer for layer in npas.allocation(model).layers}
    assert how in layers["body.0.weight"].how
    assert len({name for g in npas.allocation(model).groups for name in [g.name]}) >= 2


def test_a_low_rank_is_kept_exactly():
    model, state = fitted(low_rank(drawn(), 4), 0.85)
    errors = npas.weight_errors(model, state).layers
    assert max(errors[f"body.{i}.weight"] for i in range(4)) < 1e-5


def test_templates_are_fitted_and_folded():
    model = drawn(make=lambda: nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)]))
    with torch.no_grad():
        for layer in list(model)[1:]:
            layer.load_state_dict(model[0].state_dict())
    x = torch.randn(3, 8)
    expected = model(x)
    model, state = fitted(model, None, templates=2, groups="shape")
    assert npas.weight_errors(model, state).all < 1e-4
    folding = npas.fold(model, 0.99)
    assert len(folding.tied[0]) == 4 and folding.weights == 1
    assert torch.allclose(model(x), expected, atol=1e-4)


@pytest.mark.parametrize("templates", [1, 2, 6, 7])
@pytest.mark.parametrize(
    "options",
    [{}, {"generator": "avg"}, {"generator": "emb"}, {"train_coefficients": False}],
    ids=str,
)
def test_templates_come_as_near_as_coefficients_allow(templates, options):
    dense = drawn(make=lambda: nn.Sequential(*[nn.Linear(12, 12, bias=False) for _ in range(6)]))
    model, state = fitted(dense, None, templates=templates, groups="shape", **options)
    weights_LN = torch.stack([weight.flatten() for weight in state.values()]).double()
    if options:  # coefficients stay as they began: what lies outside of their span is lost
        rows = npas.sharing.runtime.install.shared_weights(model).reading.rows[0]
        alpha_LK = rows.coefficients(lambda name: getattr(model, name)).detach().double()
        lost_LN = weights_LN - alpha_LK @ torch.linalg.pinv(alpha_LK) @ weights_LN
        best = float(lost_LN.norm() / weights_LN.norm())
    else:
        singular = torch.linalg.svdvals(weights_LN)
        best = float(singular[templates:].norm() / singular.norm())
    assert npas.weight_errors(model, state).all == pytest.approx(best, abs=1e-5)
    for layer in model:  # and nothing is dead
        layer.weight.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_artifacts_and_muon_take_a_basis_for_matrices(tmp_path):
    basis = {"generator": "basis"}
    model, state = fitted(same_rows(drawn(make=lambda: Blocks(8))), 0.55, **basis)
    asked = npas.plan(same_rows(drawn(make=lambda: Blocks(8))), 0.55, init="fit", **basis)
    taken = npas.write_artifact(model, tmp_path / "a.npas").bytes
    assert taken <= price(Blocks(8), asked, npas.Packing())
    again = Blocks(8)
    npas.read_artifact(tmp_path / "a.npas", again)
    assert npas.allocation(again) == npas.allocation(model)
    assert npas.weight_errors(again, state).all < npas.weight_errors(model, state).all + 0.01
    for bank, templates in bank_templates(model).items():
        assert sum(t.rows * t.columns * len(t.starts) for t in templates) == bank.numel()
        assert max(t.rows for t in templates) > 1


def test_invalid_fits_are_refused_or_warned_of():
    with pytest.raises(ValueError, match="leave groups out"):
        npas.share(Mlp(), 0.5, init="fit", groups="shape")
    with pytest.raises(ValueError, match="leave low_rank out"):
        npas.share(Mlp(), 0.5, init="fit", generator="basis", low_rank=1)
    with pytest.raises(ValueError, match="a fit takes at least 501 "):
        npas.share(Mlp(), 0.3, init="fit", low_rank=4)
    for packing in (None, npas.Packing()):  # npas-train gives one with every budget in bytes
        with pytest.raises(ValueError, match="bounds bytes, and init='fit' counts parameters"):
            npas.share(Mlp(), "8KB", init="fit", packing=packing)
    with pytest.raises(ValueError, match="leave generator out, give 'codebook' or"):
        npas.share(Mlp(), 0.5, init="fit", generator="hash")
    with pytest.raises(ValueError, match=r"generator='codebook' .*init='fit'"):
        npas.share(Mlp(), 0.5, generator="codebook")
    for budget, generator, message in (
        (1.5, None, "the network's 1,316"),
        (0.1, "basis", "at least 233 parameters"),
        (0.1, "codebook", "at least 191 parameters"),
        (0.1, None, "at least 191 parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            npas.share(drawn(), budget, init="fit", generator=generator)
    with pytest.raises(ValueError, match="init='best' is unknown"):
        npas.share(Mlp(), 0.5, init="best")
    broken = drawn()
    broken.conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        npas.share(broken, 0.5, init="fit")
    model, state = fitted(drawn(), 0.5)
    name, weight = next(iter(state.items()))
    for given, line in (
        ({}, "there is no body"),
        (state | {name: "x"}, "there is no body"),
        (state | {name: weight.to("meta")}, f"{name} has no finite values to compare"),
        (state | {name: weight * torch.nan}, f"{name} has no finite values to compare"),
        (None, "dense_state=None must be a state dict"),
        (drawn(), "dense_state=Blocks.* must be a state dict"),
    ):
        with pytest.raises(ValueError, match=f"{line}.*$"):
            npas.weight_errors(model, given)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="look fresh"):
            npas.share(nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9)), 0.9, init="fit")
