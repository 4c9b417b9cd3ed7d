"""Weights generated again in backward: the same numbers, less memory."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, Residual, Specimen

import npas
from npas.sharing.bank import BankReader


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=name)


def twins(specimen: Specimen, budget: float, **options: str) -> tuple[nn.Module, nn.Module]:
    made = [
        npas.share(specimen.make(), budget, recompute=recompute, **options)  # type: ignore[arg-type]
        for recompute in (False, True)
    ]
    return made[0].train(), made[1].train()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("upsampler", ["inter", "mask", "wavg"])
@pytest.mark.parametrize("budget", [0.4, 2.3])
@pytest.mark.parametrize("specimen", ZOO, ids=lambda s: s.name)
def test_gradients_are_the_same(specimen: Specimen, budget: float, upsampler: str) -> None:
    usual, again = twins(specimen, budget, upsampler=upsampler)
    inputs, labels = specimen.batch()
    expected = gradients(usual, lambda: F.cross_entropy(usual(inputs), labels))
    for _ in range(2):
        found = gradients(again, lambda: F.cross_entropy(again(inputs), labels))
        assert_equal(found, expected)
        usual.zero_grad()


@pytest.mark.parametrize("form", ["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("budget", [0.4, 2.3])
def test_a_step_between_forward_and_backward_is_refused(
    budget: float, optimizer: Callable[..., torch.optim.Optimizer], form: str
) -> None:
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


def saved_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Count what the graph of one forward pass keeps alive of generated weights."""
    seen: list[weakref.ref[Tensor]] = []
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


def test_weights_are_dropped_after_use() -> None:
    usual, again = (npas.share(Residual(), 1.0, recompute=flag) for flag in (False, True))
    inputs = torch.randn(2, 3, 6, 6)
    assert saved_bytes(again, inputs) <= 1 < 10 < saved_bytes(usual, inputs)


def test_weights_are_dropped_after_use_whoever_decides_what_is_saved() -> None:
    model = npas.share(Residual(), 1.0, recompute=True)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda held: held):
        assert saved_bytes(model, torch.randn(2, 3, 6, 6)) <= 1


def test_weights_kept_in_evaluation_are_dropped_in_training() -> None:
    model = npas.share(Residual(), 1.0, recompute=True)
    inputs = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        model(inputs)
        kept = weakref.ref(model.get_submodule("stage1.0.conv1").weight)
        model(inputs)
    assert kept() is not None
    model(inputs)
    assert kept() is None


def test_a_layer_used_in_a_loop_is_generated_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.head = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(10):
                x = torch.tanh(self.step(x))
            return self.head(x)

    again: list[object] = []
    mix_again = BankReader.mix_again

    def counted(self: BankReader, *rest: object) -> tuple[Tensor, ...]:
        again.append(rest)
        return mix_again(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BankReader, "mix_again", counted)
    npas.share(Loop(), 0.8, recompute=True)(torch.ones(2, 16)).sum().backward()
    assert len(again) == 1, "and what the pass generated last serves backward first"


class Graph(nn.Module):
    """Save what has no storage: a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("edges", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        """Map (3, 16) to (3, 16)."""
        return self.last(torch.sparse.mm(self.get_buffer("edges"), self.first(x)).relu())


class Spectral(nn.Module):
    """See a weight as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.modes = nn.Parameter(0.1 * torch.randn(16, 16, 2))
        self.first = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 16) to (N, 16)."""
        values = torch.view_as_complex(self.first(x).view(-1, 16, 2))
        return (values @ torch.view_as_complex(self.modes)).abs()


@pytest.mark.parametrize("network", [Graph, Spectral])
def test_other_things_may_be_saved_than_strided_weights(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    dense, inputs = network(), torch.randn(3, 16)
    usual, again = (
        npas.share(copy.deepcopy(dense), 0.8, recompute=recompute) for recompute in (False, True)
    )
    expected = gradients(usual, lambda: usual(inputs).sum())
    assert_equal(gradients(again, lambda: again(inputs).sum()), expected)


def test_function_transforms_and_higher_derivatives() -> None:
    usual, again = (model.double().eval() for model in twins(ZOO[0], 0.6))
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)

    def penalty(model: nn.Module) -> Tensor:
        value = model(inputs).square().sum()
        found = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
        return torch.stack([gradient.square().sum() for gradient in found]).sum()

    assert_equal(gradients(again, lambda: penalty(again)), gradients(usual, lambda: penalty(usual)))

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(again, values, (inputs,)).square().sum()

    found = torch.func.grad(loss)(dict(again.named_parameters()))
    assert_equal(found, gradients(usual, lambda: usual(inputs).square().sum()))


def test_a_derivative_inside_the_forward_pass() -> None:
    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                start = x = x.requires_grad_()
                for layer in self.layers:
                    x = torch.tanh(layer(x))
                (x,) = torch.autograd.grad(x.square().sum(), start, create_graph=True)
            return x.square().sum()

    torch.manual_seed(0)
    dense, inputs = Forces().double(), torch.randn(3, 16, dtype=torch.float64)
    found = [
        gradients(model, lambda model=model: model(inputs.clone()))  # type: ignore[misc]
        for model in (npas.share(copy.deepcopy(dense), 0.8, recompute=r) for r in (False, True))
    ]
    assert_equal(found[0], found[1])


@pytest.mark.parametrize("recompute", [False, True])
def test_a_graph_that_is_never_used_goes_away(recompute: bool) -> None:
    model = npas.share(Residual(), 1.0, recompute=recompute)
    alive: list[weakref.ref[Tensor]] = []
    for module in model.modules():
        module.register_forward_hook(lambda m, i, output: alive.append(weakref.ref(output)))
    model(torch.randn(2, 3, 6, 6))
    assert all(ref() is None for ref in alive), "without the garbage collector's help"


def test_a_bank_changed_before_backward_is_noticed() -> None:
    model = npas.share(Residual(), 0.6, recompute=True)
    loss = model(torch.randn(2, 3, 6, 6)).sum()
    with torch.no_grad():
        model.get_parameter("npas_bank_0").add_(0.1)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_an_activation_changed_before_backward_is_noticed() -> None:
    model = npas.share(Residual(), 0.6, recompute=True)
    kept: list[Tensor] = []
    model.get_submodule("widen").register_forward_hook(lambda m, i, o: kept.append(o))
    loss = model(torch.randn(2, 3, 6, 6)).square().sum()
    with torch.no_grad():
        kept[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_inside_a_checkpoint(use_reentrant: bool) -> None:
    usual, again = twins(ZOO[0], 0.6)
    inputs, labels = ZOO[0].batch()

    def checkpointed(model: nn.Module) -> Tensor:
        x = model.get_submodule("stem")(inputs)
        for part in ("stage1", "widen", "stage2"):
            x = checkpoint(model.get_submodule(part), x, use_reentrant=use_reentrant)
        return F.cross_entropy(model.get_submodule("head")(x.mean((2, 3))), labels)

    expected = gradients(usual, lambda: F.cross_entropy(usual(inputs), labels))
    for model in (usual, again):
        assert_equal(gradients(model, lambda model=model: checkpointed(model)), expected)  # type: ignore[misc]


def test_replaced_parameters_are_those_of_the_call() -> None:
    model = npas.share(Residual(), 0.6, recompute=True).eval()
    inputs = torch.randn(2, 3, 6, 6)
    replaced = {n: (2 * p).detach().requires_grad_() for n, p in model.named_parameters()}
    plain = copy.deepcopy(model)
    plain.load_state_dict({**model.state_dict(), **replaced})
    torch.func.functional_call(model, replaced, (inputs,)).square().sum().backward()
    expected = gradients(plain, lambda: plain(inputs).square().sum())
    assert_equal({n: p.grad for n, p in replaced.items() if p.grad is not None}, expected)


def test_no_hook_stays_behind() -> None:
    model = npas.share(Residual(), 0.6, recompute=True)

    def hooks() -> object:
        return torch._C._autograd._top_saved_tensors_default_hooks(False)

    model(torch.randn(2, 3, 6, 6))
    assert hooks() is None
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 4, 6, 6))
    assert hooks() is None

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.get_submodule("stage2").register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(2, 3, 6, 6))
    handle.remove()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert hooks() is None


def test_copies_and_loaded_networks_recompute(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("saved")
    model = npas.share(Residual(), 1.0, recompute=True)
    npas.save(model, folder)
    loaded = npas.load(folder, Residual(), recompute=True)
    inputs = torch.randn(2, 3, 6, 6)
    assert saved_bytes(copy.deepcopy(model), inputs) <= 1
    assert saved_bytes(loaded, inputs) <= 1


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_rounds_the_weights_of_rounding_layers_alone(recompute: bool) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 16)
            self.first = nn.Linear(16, 16)
            self.tied = nn.Linear(16, 30, bias=False)
            self.tied.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.tied(torch.tanh(self.first(self.table(x)))).float()

    tokens, labels = torch.arange(8), torch.arange(8) + 3
    torch.manual_seed(0)
    model = npas.share(Mixed(), 1.5, recompute=recompute)
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> None:
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
