"""Weights recomputed in backward: equal gradients, less memory."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, Residual

import npas
from npas.sharing.runtime.bank import Block


def gradients(model, loss):
    model.zero_grad()
    loss().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=name)


def twins(specimen, budget, **options):
    made = [
        npas.share(specimen.make(), budget, recompute=recompute, **options)  # type: ignore[arg-type]
        for recompute in (False, True)
    ]
    return made[0].train(), made[1].train()


WAYS = [(0.4, "inter"), (0.4, "wavg"), (2.3, "mask")]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("specimen", "budget", "upsampler"),
    [(specimen, *WAYS[i % 3]) for i, specimen in enumerate(ZOO)],
    ids=lambda value: getattr(value, "name", None),
)
def test_gradients_are_the_same(specimen, budget, upsampler):
    usual, again = twins(specimen, budget, upsampler=upsampler)
    inputs, labels = specimen.batch()
    expected = gradients(usual, lambda: F.cross_entropy(usual(inputs), labels))
    for _ in range(2):
        found = gradients(again, lambda: F.cross_entropy(again(inputs), labels))
        assert_equal(found, expected)
        usual.zero_grad()


@pytest.mark.parametrize("form", ["for-loop", "foreach", "fused"])
@pytest.mark.parametrize(
    ("budget", "optimizer"), [(0.4, torch.optim.SGD), (2.3, torch.optim.AdamW)]
)
def test_a_step_between_forward_and_backward_is_refused(budget, optimizer, form):
    """Also a fused one, which moves no version counter; a step of others' parameters is none."""
    choice = {"for-loop": {"foreach": False}}.get(form, {form: True})
    for model in twins(ZOO[0], budget, upsampler="mask"):
        inputs, labels = ZOO[0].batch()
        other = nn.Linear(2, 2)
        other(torch.ones(2)).sum().backward()
        F.cross_entropy(model(inputs), labels).backward()
        value = F.cross_entropy(model(inputs), labels)
        optimizer(other.parameters(), lr=0.1, **choice).step()
        value.backward()
        value = F.cross_entropy(model(inputs), labels)
        shared = [p for name, p in model.named_parameters() if "npas_" in name]
        optimizer(shared, lr=0.1, **choice).step()
        with pytest.raises(RuntimeError, match="step the optimizer after backward"):
            value.backward()


def saved_bytes(model, inputs):
    """Count what the graph of one forward pass keeps alive of generated weights."""
    seen = []
    handles = [
        module.register_forward_hook(lambda m, *_: seen.append(weakref.ref(m.weight)))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    output = model(inputs)
    for handle in handles:
        handle.remove()
    gc.collect()
    alive = sum(ref() is not None for ref in seen)
    del output
    return alive


def test_weights_are_dropped_after_use():
    usual, again = (npas.share(Residual(), 1.0, recompute=flag) for flag in (False, True))
    inputs = torch.randn(2, 3, 6, 6)
    assert saved_bytes(again, inputs) <= 1 < 10 < saved_bytes(usual, inputs)


def test_a_layer_used_in_a_loop_is_generated_again_once(monkeypatch):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.step, self.head = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            for _ in range(10):
                x = torch.tanh(self.step(x))
            return self.head(x)

    made = []
    weights = Block.weights

    def counted(self, *others):
        made.append(self)
        return weights(self, *others)

    monkeypatch.setattr(Block, "weights", counted)
    output = npas.share(Loop(), 0.8, generator="wavg", recompute=True)(torch.ones(2, 16))
    assert len(made) == 2
    output.sum().backward()
    assert len(made) == 3, "and what the pass generated last serves backward first"


@pytest.mark.parametrize("recompute", [False, True])
def test_a_graph_that_is_never_used_goes_away(recompute):
    model = npas.share(Residual(), 1.0, recompute=recompute)
    alive = []
    for module in model.modules():
        module.register_forward_hook(lambda m, i, output: alive.append(weakref.ref(output)))
    model(torch.randn(2, 3, 6, 6))
    assert all(ref() is None for ref in alive), "without the garbage collector's help"


def test_no_hook_stays_behind():
    model = npas.share(Residual(), 0.6, generator="wavg", recompute=True)

    def hooks():
        return torch._C._autograd._top_saved_tensors_default_hooks(False)

    model(torch.randn(2, 3, 6, 6))
    assert hooks() is None
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 4, 6, 6))
    assert hooks() is None

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.get_submodule("stage2").register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(2, 3, 6, 6))
    handle.remove()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert hooks() is None


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_rounds_the_weights_of_rounding_layers_alone(recompute):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(30, 16)
            self.first = nn.Linear(16, 16)
            self.tied = nn.Linear(16, 30, bias=False)
            self.tied.weight = self.table.weight

        def forward(self, x):
            return self.tied(torch.tanh(self.first(self.table(x)))).float()

    tokens, labels = torch.arange(8), torch.arange(8) + 3
    torch.manual_seed(0)
    model = npas.share(Mixed(), 1.5, recompute=recompute)
    seen = {}

    def note(name):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda m, *_: seen.update({name: m.weight.dtype}))

    note("table")
    note("first")
    exact = gradients(model, lambda: F.cross_entropy(model(tokens), labels))
    assert set(seen.values()) == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(tokens), labels)
    assert seen == {"table": torch.float32, "first": torch.bfloat16}
    rounded = gradients(model, lambda: loss)
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        scale = gradient.abs().max()
        assert (rounded[name] - gradient).abs().max() < 0.03 * scale, name
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        shared = model.eval()(tokens)
        assert torch.equal(shared, npas.materialize(copy.deepcopy(model))(tokens))
