"""`init="fit"` with batches: errors are those of the network's outputs."""

import copy
import itertools

import pytest
import torch
from fits import drawn, fitted
from torch import nn
from transformers.pytorch_utils import Conv1D

import npas
from npas.sharing.layers import find_layers, matrix_form
from npas.sharing.trained import activations

pytestmark = pytest.mark.filterwarnings("ignore:.*look fresh")  # random weights stand for trained


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
        assert npas.count_parameters(model) == report.used <= report.allowed and model.training
        assert not any(module._forward_hooks for module in model.modules() if module is not model)
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


class Once(nn.Module):
    """One layer of each kind; a sample has one input of each."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(12, 18)
        self.conv = nn.Conv2d(2, 10, 3)
        self.signal = nn.Conv1d(2, 6, 5)
        self.turned = Conv1D(8, 6)
        self.line = nn.Linear(8, 7)

    def forward(self, ids):
        hidden = self.conv(self.words(ids).view(-1, 2, 3, 3)).view(-1, 2, 5)
        hidden = self.turned(self.signal(hidden.tanh()).flatten(1).tanh()).tanh()
        return self.line(hidden).tanh()


def test_errors_are_those_of_the_outputs_to_first_order(monkeypatch):
    monkeypatch.setattr(activations, "DAMPING", 1e-9)
    model = drawn(make=Once)
    ids = torch.randint(12, (500,))
    layers = find_layers(model)
    found = activations.roots(model, layers, [(ids,)])
    assert set(found) == {layer.spec.name for layer in layers}
    assert all(p.grad is None for p in model.parameters()) and model.training
    before = model(ids).detach()
    for layer in layers:
        weight, root = layer.parameter, found[layer.spec.name]
        true = mine = 0.0
        for _ in range(60):
            change = torch.randn_like(weight)
            with torch.no_grad():
                weight += 1e-3 * change
                true += float(((model(ids) - before) / 1e-3).square().sum() / before.square().sum())
                weight -= 1e-3 * change
            change_RN = change.double().reshape(matrix_form(weight.shape))
            mine += float(root.weigh(change_RN).square().sum())
        assert mine == pytest.approx(true, rel=0.15), layer.spec.name
        left, right = root.undo(root.weigh(change_RN), torch.eye(change_RN.shape[1]).double())
        torch.testing.assert_close(left @ right, change_RN, rtol=0, atol=1e-5)
    with torch.no_grad():
        model.conv.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"signal\.weight inputs or gradients that are not finite"):
        activations.roots(model, layers, [(ids,)])


def test_patches_of_a_few_images_at_a_time_count_as_all_at_once(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    images, found = torch.randn(5, 2, 6, 6), []
    for most in (2**23, 1400):
        monkeypatch.setattr(activations, "PATCHES", most)
        found.append(activations.roots(model, find_layers(model), [(images,)])["0.weight"])
    change = torch.randn(4, 18).double()
    torch.testing.assert_close(*(root.weigh(change) for root in found))


@pytest.mark.parametrize(
    ("name", "shape", "integer", "is_masked"),
    [("", (2, 5, 5), False, True), ("", (2, 5), True, True), ("", (2, 5), False, False),
     ("end_logits", (2, 5), False, True), ("", (2, 6, 5), False, False)],
)  # fmt: skip
def test_as_many_features_as_tokens_are_no_text(name, shape, integer, is_masked):
    masks = activations._Masks.of_batch(nn.Linear(2, 2), {"attention_mask": torch.ones(2, 5)})
    tensor = torch.zeros(shape, dtype=torch.long if integer else torch.float)
    assert (masks.of(name, tensor, is_output=True) is not None) == is_masked


class Translator(nn.Module):
    """An encoder-decoder network whose parts are linear and see texts of one length."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8))
        self.decoder = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8))

    def forward(self, input_ids, decoder_input_ids, **masks):
        encoded = self.encoder(input_ids).mean(1, keepdim=True)
        return self.decoder(decoder_input_ids) * (1 + encoded)


def test_the_mask_of_a_text_is_not_that_of_its_translation():
    model = drawn(make=Translator)
    ids = torch.randint(1, 16, (2, 8), generator=torch.Generator().manual_seed(0))
    some = torch.arange(8) < torch.tensor([[5], [8]])

    def changed(**masks):
        """Return the layers whose factors the masks change."""
        found = [
            activations.roots(
                model, find_layers(model), [{"input_ids": ids, "decoder_input_ids": ids} | own]
            )
            for own in ({}, masks)
        ]
        return {
            name.partition(".")[0]
            for name in found[0]
            if not all(
                torch.equal(getattr(found[0][name], k), getattr(found[1][name], k))
                for k in ("left", "right")
            )
        }

    assert changed(attention_mask=some) == {"encoder"}
    # The outputs are the decoder's, and all gradients depend on which ones count.
    assert changed(decoder_attention_mask=some) == {"encoder", "decoder"}
    assert changed(attention_mask=some | True) == set()


class Strict(nn.Linear):
    """A layer that accepts no generated weight."""

    def forward(self, x):
        if not isinstance(self.weight, nn.Parameter):
            raise TypeError("no parameter")
        return super().forward(x)


def test_a_fitted_network_that_does_not_run_is_shared_with_a_warning():
    model = nn.Sequential(Strict(8, 16), nn.ReLU(), nn.Linear(16, 8))
    with pytest.warns(UserWarning, match=r"cannot be run \(TypeError: no parameter\)"):
        npas.share(model, 0.7, init="fit", batches=[torch.randn(2, 8)])
    errors = npas.sharing.runtime.install.shared_weights(model).errors
    assert errors.outputs is None and errors.reached == 0.5 and errors.all < 0.5
    assert "the batches reached 50% of the weights" in npas.summary(model)


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
    assert set(found) == {"words.weight"} and found["words.weight"].left.shape == (16,)
    model, _ = fitted(model, 0.6, batches=[(ids,)])
    assert model.head.weight is not None and npas.allocation(
        model
    ).budget.used == npas.count_parameters(model)
    with pytest.raises(ValueError, match="reach no layer"):
        activations.roots(drawn(make=Tied), find_layers(model := drawn(make=Tied)), [ids])


class Positions(nn.Embedding):
    """An embedding that is called with words and looks up their positions, as Whisper's is."""

    def forward(self, ids):
        return self.weight[: ids.shape[-1]]


class Doubled(nn.Linear):
    """A layer that uses its weight in another way than its class does."""

    def forward(self, x):
        return nn.functional.linear(x.cumsum(-1), self.weight, self.bias)


@pytest.mark.parametrize("words", [40, 3])  # more words than positions, and fewer
def test_a_layer_that_computes_otherwise_than_its_class_counts_as_the_average(words):
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"words": nn.Embedding(words, 12), "at": Positions(9, 12), "line": Doubled(12, 12)}
    )
    model.forward = lambda ids: model["line"](model["words"](ids) + model["at"](ids))
    ids = torch.randint(words, (4, 9))
    assert set(activations.roots(model, find_layers(model), [(ids,)])) == {"words.weight"}
    model, _ = fitted(model, 0.6, batches=[(ids,)])
    assert npas.allocation(model).budget.used == npas.count_parameters(model)


@pytest.mark.parametrize(
    "options",
    [{"init": "fresh"}, {"templates": 1}, {"batches": []}, {"batches": torch.zeros(2, 12)}],
    ids=["fresh", "templates", "none", "a tensor"],
)
def test_batches_are_for_a_fit_inside_a_budget(options):
    model = drawn(make=Seeing)
    options = {"init": "fit", "batches": [torch.zeros(1, 12).long()]} | options
    budget = None if "templates" in options else 0.5
    for verb in (npas.plan, npas.share):
        with pytest.raises(ValueError, match="batches must be a list"):
            verb(model, budget, **options)


def pair():
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1))


FORMS = {
    "flat": (lambda y: y.squeeze(-1), True),
    "nested": (lambda y: {"heads": {"main": y.squeeze(-1)}}, True),
    "in a dict": (lambda y: {"loss": y.mean(), "scores": y.squeeze(-1)}, True),
    "a scalar": (lambda y: y.mean(), False),
    "complex": (lambda y: y.to(torch.complex64), False),
    "sparse": (lambda y: y.to_sparse(), False),
    "an object": (lambda y: object(), False),
    "zeros": (lambda y: y * 0, False),
    "without gradients": (lambda y: y.detach().squeeze(-1), True),
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


class Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2


def test_outputs_without_a_backward_are_refused_in_one_line():
    model = drawn(make=pair)
    model.register_forward_hook(lambda module, given, output: Forward.apply(output))
    with pytest.raises(
        ValueError, match=r"^batches\[0\] cannot be run backward .*leave batches out$"
    ):
        npas.share(model, 0.5, init="fit", batches=[torch.randn(9, 16)])
