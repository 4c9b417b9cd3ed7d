"""The banks' gradients: right, once per backward pass, seen by everything that looks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import ZOO

import npas
from npas.sharing import bank as memory
from npas.sharing.bank import BankReader, BufferPool


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
        first, second, _ = reader.mix(reader.block([0, 1, 2], positions, 6), block)
        (alone,) = reader.mix(reader.block([3], positions, 6), alpha[None])
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
