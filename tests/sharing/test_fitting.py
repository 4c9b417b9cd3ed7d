"""`init="fit"`: trained weights are approximated within the exact budget."""

import copy
import itertools
import warnings

import pytest
import torch
from tiny import Mlp, shared
from torch import nn
from zoo import ZOO

import npas
from npas.sharing import price
from npas.sharing.layers import find_layers
from npas.sharing.layout.templates import bank_templates
from npas.sharing.trained import activations

BUDGETS = (0.4, 0.55, 0.7, 0.93)


class Blocks(nn.Module):
    """Layers of one shape, one of another and a convolution: a bit of everything."""

    def __init__(self, blocks=4, width=12):
        super().__init__()
        self.body = nn.Sequential(*[nn.Linear(width, width) for _ in range(blocks)])
        self.wide = nn.Linear(width, 3 * width)
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        hidden = self.wide(self.body(x)).view(len(x), 3, 3, -1)
        return self.conv(hidden.expand(-1, -1, 3, -1)).flatten(1)


@pytest.fixture(autouse=True)
def fresh_weights_are_meant():
    """Let random weights stand for trained ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*look fresh")
        yield


def drawn(seed=0, make=Blocks):
    torch.manual_seed(seed)
    return make()


def fitted(model, budget, **options):
    state = copy.deepcopy(model.state_dict())
    return npas.share(model, budget, init="fit", **options), state  # type: ignore[arg-type]


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("budget", [0.2, *BUDGETS, "0.701K", "1.001K"])
def test_budgets_are_exact_and_every_parameter_is_read(budget):
    model, _ = fitted(drawn(), budget)
    plan = npas.allocation(model)
    assert plan.budget.used == count(model) <= plan.budget.allowed
    assert plan.budget.allowed - plan.budget.used <= max(plan.budget.allowed // 1000, 6)
    assert plan.unread == 0
    model(torch.randn(2, 12)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
def test_any_network_is_fitted_saved_loaded_and_materialized(specimen, tmp_path):
    torch.manual_seed(0)
    model, state = fitted(specimen.make(), 0.6)
    model.eval()
    plan = npas.allocation(model)
    assert plan.budget.used == count(model) <= plan.budget.allowed
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
    said = npas.summary(model)
    assert f"relative error {errors.all:.3g}" in said and "conv.weight" in said
    assert "fit " not in npas.summary(shared(0.5))
    assert npas.plan(drawn(), 0.5, init="fit") == npas.allocation(model)


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_farther_than_layers_of_one_rank_each(budget):
    model, state = fitted(drawn(), budget)
    layers = [state[layer.name].flatten(1) for layer in npas.allocation(model).layers]
    allowed = npas.allocation(model).split
    room = sum(allowed.values()) - sum(p.numel() for p in model.parameters() if p.dim() < 2)
    left = []
    for rank in range(13):
        if sum(rank * (sum(w.shape) - rank) for w in layers) <= room:
            left.append(sum(torch.linalg.svdvals(w)[rank:].square().sum() for w in layers))
    best = float((left[-1] / sum(w.square().sum() for w in layers)).sqrt())
    assert npas.weight_errors(model, state).all <= best


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


class Seeing(nn.Module):
    """Words, a layer and a convolution whose inputs lie in few directions."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 24)
        self.line = nn.Linear(24, 32)
        self.conv = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.dropout = nn.Dropout()
        with torch.no_grad():
            self.words.weight[:6, 4:] = 0

    def forward(self, ids):
        hidden = self.dropout(self.line(self.words(ids)))
        return self.conv(hidden.view(len(ids), 8, 4, -1)).flatten(1)


@pytest.mark.parametrize("budget", [0.35, 0.5, 0.7])
def test_errors_count_by_what_layers_see(budget):
    dense = drawn(make=Seeing)
    seen = torch.randint(6, (7, 12), generator=torch.Generator().manual_seed(0))
    errors = []
    for batches in (None, [{"ids": ids} for ids in seen.split(3)]):
        model, _ = fitted(copy.deepcopy(dense), budget, batches=batches)
        report = npas.allocation(model).budget
        assert count(model) == report.used <= report.allowed and model.training
        assert not any(
            module._forward_pre_hooks for module in model.modules() if module is not model
        )
        with torch.no_grad():
            outputs = [copy.deepcopy(net).eval()(seen[:3]) for net in (model, dense)]
        errors.append((outputs[0] - outputs[1]).norm().item() / outputs[1].norm().item())
        own = npas.sharing.runtime.install.shared_weights(model).errors
        assert own.outputs == (None if batches is None else pytest.approx(errors[-1], rel=1e-4))
    assert errors[1] < 0.7 * errors[0], errors
    plan = npas.plan(
        copy.deepcopy(dense), budget, init="fit", batches=[(ids,) for ids in seen.split(3)]
    )
    assert plan == npas.allocation(model)
    assert f"{errors[1]:.3g} of the outputs of a batch" in npas.summary(model)


def test_what_layers_see_is_measured_as_it_is():
    """C of a convolution's patches and of a layer's inputs, and how often words are read."""
    model = drawn(make=Seeing)
    layers = find_layers(model)
    ids = torch.randint(6, (5, 12))
    found = activations.roots(model, layers, [ids[:2], ids[2:]])
    assert set(found) == {"words.weight", "line.weight", "conv.weight"}
    counts = ids.flatten().bincount(minlength=60)
    torch.testing.assert_close(found["words.weight"].factor.square(), counts.double() + 1)
    with torch.no_grad():
        words = model.words(ids).reshape(-1, 24).double()
        pictures = model.line(model.words(ids)).view(5, 8, 4, -1)
        patches = nn.functional.unfold(pictures, 3, padding=1, stride=2).double()
        patches = patches.transpose(1, 2).reshape(-1, 72)
    for name, inputs in (("line.weight", words), ("conv.weight", patches)):
        moment = inputs.T @ inputs
        moment = moment / moment.diagonal().mean() + 0.01 * torch.eye(len(moment))
        root = found[name]
        torch.testing.assert_close(root.factor @ root.factor, moment, rtol=1e-6, atol=1e-6)
        product = root.factor @ root.inverse
        torch.testing.assert_close(product, torch.eye(len(moment)).double(), rtol=0, atol=1e-6)
    model.line.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"conv\.weight inputs that are not finite"):
        activations.roots(model, layers, [ids])


class Tied(nn.Module):
    """A head that is its embedding, of as many words as it is wide; it is called by name."""

    def __init__(self):
        super().__init__()
        self.words, self.line, self.head = (
            nn.Embedding(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
        )
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.line(input=self.words(ids)))


def test_a_tied_embedding_counts_as_one_and_other_layers_may_be_out_of_reach():
    model = drawn(make=Tied)
    ids = torch.randint(16, (3, 5))
    found = activations.roots(model, find_layers(model), [(ids,)])
    assert set(found) == {"words.weight"} and found["words.weight"].factor.shape == (16,)
    model, _ = fitted(model, 0.6, batches=[(ids,)])
    assert model.head.weight is not None and npas.allocation(model).budget.used == count(model)
    with pytest.raises(ValueError, match="reach no layer"):
        activations.roots(drawn(make=Tied), find_layers(model := drawn(make=Tied)), [ids])


@pytest.mark.parametrize(
    "options",
    [{"init": "fresh"}, {"templates": 1}, {"batches": []}, {"batches": torch.zeros(2, 12)}],
    ids=["fresh", "templates", "none", "a tensor"],
)
def test_batches_are_for_a_fit_inside_a_budget(options):
    model = drawn(make=Seeing)
    words = {"init": "fit", "batches": [torch.zeros(1, 12).long()]} | options
    budget = None if "templates" in options else 0.5
    for verb in (npas.plan, npas.share):
        with pytest.raises(ValueError, match="batches must be a list"):
            verb(model, budget, **words)


def pair():
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1))


FORMS = {
    "flat": (lambda y: y.squeeze(-1), True),
    "in a dict": (lambda y: {"loss": y.mean(), "scores": y.squeeze(-1)}, True),
    "a scalar": (lambda y: y.mean(), False),
    "complex": (lambda y: y.to(torch.complex64), False),
    "sparse": (lambda y: y.to_sparse(), False),
    "an object": (lambda y: object(), False),
    "zeros": (lambda y: y * 0, False),
}


@pytest.mark.parametrize(("form", "compared"), FORMS.values(), ids=FORMS)
def test_outputs_of_any_form_are_compared_if_they_can_be(form, compared):
    model = drawn(make=pair)
    model.register_forward_hook(lambda module, given, output: form(output))
    fitted(model, 0.5, batches=[torch.randn(9, 16)])
    assert ("of the outputs of a batch" in npas.summary(model)) == compared


@pytest.mark.parametrize(
    "batch",
    [
        *(3, None, "x", torch.zeros(2, 3), torch.zeros(2, 16).long(), torch.zeros(0, 16)),
        *({"foo": torch.zeros(2, 16)}, {"x": torch.zeros(0, 16)}, (torch.zeros(2, 16),) * 2),
    ],
    ids=str,
)
def test_batches_that_do_not_fit_leave_the_network_as_it_was(batch):
    model = drawn(make=pair)
    before = copy.deepcopy(model.state_dict())
    for verb, others in itertools.product((npas.plan, npas.share), ([], [torch.randn(9, 16)])):
        line = rf"^batches\[{len(others)}\] cannot be run through the network \(\w+: .+$"
        with pytest.raises(ValueError, match=line):
            verb(model, 0.5, init="fit", batches=[*others, batch])
    assert model.training
    assert all(torch.equal(after, before[name]) for name, after in model.state_dict().items())


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
    model, state = fitted(same_rows(drawn(make=lambda: Blocks(8))), 0.55)
    asked = npas.plan(same_rows(drawn(make=lambda: Blocks(8))), 0.55, init="fit")
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
        npas.share(Mlp(), 0.5, init="fit", low_rank=1)
    with pytest.raises(ValueError, match="bounds bytes"):
        npas.share(Mlp(), "8KB", init="fit")
    for budget, said in ((1.5, "the network's 1,316"), (0.1, "at least 233 parameters")):
        with pytest.raises(ValueError, match=said):
            npas.share(drawn(), budget, init="fit")
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
