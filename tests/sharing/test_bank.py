"""The banks' gradients: right, once per backward pass, seen by everything that looks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, Residual, Specimen

import npas
from npas.sharing import memory
from npas.sharing.bank import BankReader
from npas.sharing.memory import BufferPool


def naive(model: nn.Module) -> nn.Module:
    """Return the network with weights mixed by plain autograd operations."""
    twin = copy.deepcopy(model)
    shared = twin.__dict__["_npas_shared"]
    shared.weight = shared.plain_weight
    return twin


@pytest.mark.parametrize("budget", [0.3, 1.2, 2.5])
@pytest.mark.parametrize("specimen", ZOO, ids=lambda s: s.name)
def test_gradients_equal_a_naive_implementation(specimen: Specimen, budget: float) -> None:
    model = npas.share(specimen.make(), budget, upsampler="inter").double()
    plain = naive(model)
    inputs, labels = specimen.batch()
    for network in (model, plain):
        F.cross_entropy(network(inputs.double()), labels).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_gradients_gathered_piece_by_piece_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared().double()
    step_double(model).backward()
    whole = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr("npas.sharing.bank.PIECE", 50)
    step_double(model).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("positions", [(0, 6, 12), (3,), (0, 4, 8), (14, 8)])
def test_mixing_passes_gradcheck(positions: tuple[int, ...]) -> None:
    bank = torch.randn(20, dtype=torch.float64, requires_grad=True)
    alpha = torch.randn(len(positions), dtype=torch.float64, requires_grad=True)

    def mixed(bank: Tensor, alpha: Tensor) -> Tensor:
        reader = BankReader(bank, BufferPool())
        block = torch.stack([alpha, alpha.flip(0), alpha**2])
        first, second, _ = reader.mix([0, 1, 2], block, positions, 6)
        (alone,) = reader.mix([3], alpha[None], positions, 6)
        return first * alone, second * first

    assert torch.autograd.gradcheck(mixed, (bank, alpha))
    assert torch.autograd.gradgradcheck(mixed, (bank, alpha))


def step(model: nn.Module) -> Tensor:
    inputs, labels = ZOO[0].batch()
    return F.cross_entropy(model(inputs), labels)


def step_double(model: nn.Module) -> Tensor:
    inputs, labels = ZOO[0].batch()
    return F.cross_entropy(model.eval()(inputs.double()), labels)


def shared() -> nn.Module:
    return npas.share(ZOO[0].make(), 0.4)


def test_autograd_grad_sees_the_bank_and_leaves_grad_alone() -> None:
    model = shared()
    bank = model.get_parameter("npas_bank_0")
    (gradient,) = torch.autograd.grad(step(model), [bank])
    assert bank.grad is None
    step(model).backward()
    torch.testing.assert_close(bank.grad, gradient)


def test_a_backward_that_skips_the_bank_leaves_nothing_behind() -> None:
    model = shared()
    bank = model.get_parameter("npas_bank_0")
    alpha = next(p for n, p in model.named_parameters() if n.startswith("npas_coefficients"))
    step(model).backward()
    expected = bank.grad
    bank.grad = None
    loss = step(model)
    torch.autograd.grad(loss, [alpha], retain_graph=True)
    loss.backward()
    torch.testing.assert_close(bank.grad, expected)


def test_repeated_and_accumulated_backward_add_up() -> None:
    model = shared()
    bank = model.get_parameter("npas_bank_0")
    model.eval()
    loss = step(model)
    loss.backward(retain_graph=True)
    once = bank.grad.clone()  # type: ignore[union-attr]
    loss.backward()
    torch.testing.assert_close(bank.grad, 2 * once)
    step(model).backward()
    torch.testing.assert_close(bank.grad, 3 * once)


def test_two_forward_passes_in_one_loss() -> None:
    model = shared().eval()
    bank = model.get_parameter("npas_bank_0")
    step(model).backward()
    once = bank.grad.clone()  # type: ignore[union-attr]
    bank.grad = None
    (step(model) + step(model)).backward()
    torch.testing.assert_close(bank.grad, 2 * once)


def test_kept_gradients_are_not_overwritten_by_the_next_step() -> None:
    model = npas.share(nn.Sequential(*[nn.Linear(600, 600) for _ in range(3)]), 2.0)
    bank = model.get_parameter("npas_bank_0")
    inputs = torch.randn(2, 600)
    model(inputs).sum().backward()
    kept = bank.grad
    assert kept is not None
    before = kept.clone()
    bank.grad = None
    model(2 * inputs).sum().backward()
    assert torch.equal(kept, before)
    outputs = [model(inputs) for _ in range(2)]  # two live graphs: their weights are apart
    outputs[0].sum().backward()
    outputs[1].sum().backward()


def test_memory_of_weights_and_gradients_is_used_again() -> None:
    model = npas.share(nn.Sequential(*[nn.Linear(600, 600) for _ in range(3)]), 2.0)
    bank = model.get_parameter("npas_bank_0")
    places = []
    for _ in range(3):
        bank.grad = None
        model(torch.randn(2, 600)).sum().backward()
        places.append(bank.grad.data_ptr())  # type: ignore[union-attr]
    assert places[1] == places[2]


def test_hooks_see_the_gradient_once() -> None:
    model = shared()
    seen: list[Tensor] = []
    bank = model.get_parameter("npas_bank_0")
    bank.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))  # type: ignore[arg-type]
    step(model).backward()
    assert len(seen) == 1 and bool(seen[0].any())


def test_an_optimizer_step_between_forward_and_backward_is_refused() -> None:
    model = shared()
    loss = step(model)
    with torch.no_grad():
        model.get_parameter("npas_bank_0").mul_(0.9)
    with pytest.raises(RuntimeError, match="step the optimizer after backward"):
        loss.backward()


def test_a_frozen_bank_still_trains_its_coefficients() -> None:
    model = shared()
    bank = model.get_parameter("npas_bank_0").requires_grad_(False)
    step(model).backward()
    assert bank.grad is None
    assert all(p.grad is not None for n, p in model.named_parameters() if "coefficients" in n)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model = shared().eval()
    inputs, labels = ZOO[0].batch()
    inputs.requires_grad_()
    step(model).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    stages = [model.get_submodule(name) for name in ("stem", "stage1", "widen", "stage2")]
    x = inputs
    for stage in stages:
        x = checkpoint(stage, x, use_reentrant=reentrant)
    F.cross_entropy(model.get_submodule("head")(x.mean((2, 3))), labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


class Checkpointed(Residual):
    """A network that checkpoints its own blocks, as language models do."""

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.stem(x)
        for block in self.stage1:
            x = checkpoint(block, x, use_reentrant=False)
        x = self.widen(x)
        for block in self.stage2:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("generator", ["wavg", "emb"])
@pytest.mark.parametrize(("budget", "upsampler"), [(0.1, "wavg"), (0.1, "inter"), (2.5, "inter")])
def test_a_network_that_checkpoints_its_blocks(
    generator: str, budget: float, upsampler: str
) -> None:
    gradients = []
    for network in (Residual, Checkpointed):
        torch.manual_seed(0)
        model = npas.share(network(), budget, generator=generator, upsampler=upsampler)
        step(model.eval()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_backward_inside_a_backward_leaves_both_right() -> None:
    model = shared().eval()
    bank = model.get_parameter("npas_bank_0")
    inputs, labels = ZOO[0].batch()
    (step(model) + 3 * step(model)).backward()
    expected = bank.grad
    bank.grad = None
    logits = model(inputs)
    aside = 3 * F.cross_entropy(model(inputs), labels)
    logits.register_hook(lambda gradient: aside.backward())
    F.cross_entropy(logits, labels).backward()
    torch.testing.assert_close(bank.grad, expected, rtol=1e-4, atol=1e-6)


def test_nested_backward_over_one_forward_pass() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            half = self.body[0](x)
            return self.body[1](half).square().sum(), self.body[2](half).square().sum()

    def gradient(nested: bool) -> Tensor:
        torch.manual_seed(0)
        model = npas.share(TwoHeads(), 0.8)
        first, second = model(torch.ones(2, 16))
        if nested:
            first.register_hook(lambda g: second.backward(retain_graph=True))
            first.backward(retain_graph=True)
        else:
            (first + second).backward()
        found = model.get_parameter("npas_bank_0").grad
        assert found is not None
        return found

    torch.testing.assert_close(gradient(nested=True), gradient(nested=False))


def test_resized_layers_allow_double_backward_and_function_transforms() -> None:
    model = npas.share(Residual(), 0.1).eval()
    assert any(layer.upsampler for layer in npas.allocation(model).layers)
    bank = model.get_parameter("npas_bank_0")
    (gradient,) = torch.autograd.grad(step(model), [bank], create_graph=True)
    gradient.square().sum().backward()
    assert bank.grad is not None and bool(bank.grad.isfinite().all())
    inputs, labels = ZOO[0].batch()

    def loss(values: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), labels)

    found = torch.func.grad(loss)(dict(model.named_parameters()))["npas_bank_0"]
    torch.testing.assert_close(found, gradient.detach(), rtol=1e-4, atol=1e-6)


def test_finished_passes_are_freed_at_once() -> None:
    import gc
    import weakref

    from npas.sharing.bank import _GradientBuffer

    living: weakref.WeakSet[_GradientBuffer] = weakref.WeakSet()
    create = _GradientBuffer.__init__

    def watched(self: _GradientBuffer, *rest: object) -> None:
        create(self, *rest)  # type: ignore[arg-type]
        living.add(self)

    model = shared()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_GradientBuffer, "__init__", watched)
            for _ in range(3):
                step(model).backward()
        assert not living
    finally:
        gc.enable()


def test_gradients_of_coefficients_alone_leave_no_buffer_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from npas.sharing.bank import _GradientBuffer

    buffers: list[_GradientBuffer] = []
    create = _GradientBuffer.__init__

    def watched(self: _GradientBuffer, *rest: object) -> None:
        create(self, *rest)  # type: ignore[arg-type]
        buffers.append(self)

    monkeypatch.setattr(_GradientBuffer, "__init__", watched)
    model = shared()
    alpha = [p for n, p in model.named_parameters() if n.startswith("npas_coefficients")]
    loss = step(model)
    for _ in range(3):
        torch.autograd.grad(loss, alpha, retain_graph=True)
    assert buffers and not any(buffer._gradients for buffer in buffers)


def test_two_threads_never_get_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, like, size = BufferPool(), torch.empty(0), (1 << 20,)
    pool.empty("key", size, like)
    others: list[Tensor] = []
    is_shared = memory.is_shared_storage

    def interrupted(storage: torch.UntypedStorage) -> bool:
        others.append(pool.empty("key", size, like))  # another thread, at the worst moment
        return is_shared(storage)

    monkeypatch.setattr(memory, "is_shared_storage", interrupted)
    mine = pool.empty("key", size, like)
    assert others and all(mine.data_ptr() != other.data_ptr() for other in others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_keeps_the_bank_in_full_precision(dtype: torch.dtype) -> None:
    model = shared()
    with torch.autocast("cpu", dtype=dtype):
        loss = step(model)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name


def test_half_and_double_networks_run() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = shared().to(dtype)
        outputs = model(torch.randn(2, 3, 6, 6, dtype=dtype))
        outputs.sum().backward()
        assert outputs.dtype == dtype


def test_functional_call_and_function_transforms() -> None:
    model = shared().eval()
    inputs, labels = ZOO[0].batch()
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), labels)

    step(model).backward()
    gradients = torch.func.grad(loss)(parameters)
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
    doubled = {name: 2 * p for name, p in parameters.items()}
    assert not torch.equal(loss(doubled), loss(parameters))
