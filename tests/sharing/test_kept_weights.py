"""Without gradients weights are generated once and kept, and never outlive what they came from."""

import copy
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny import INPUTS, LABELS, bank, loss, outputs, shared
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import npas
from npas.sharing import weights


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """List every weight that is generated from here on."""
    from npas.sharing.bank import BankReader

    made: list[object] = []
    mix = BankReader.mix

    def counted(self: BankReader, keys: list[int], *rest: object) -> list[Tensor]:
        made.extend(keys)
        return mix(self, keys, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BankReader, "mix", counted)
    return made


def layers(model: nn.Module) -> int:
    return len(npas.allocation(model).layers)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_generates_every_weight_once(
    mode: Callable[[], torch.no_grad], generated: list[object]
) -> None:
    model = shared().eval()
    with mode():
        for _ in range(5):
            model(INPUTS)
    assert len(generated) == len(set(generated)) == layers(model)


def test_threads_that_evaluate_one_network_read_the_same_weights() -> None:
    model = shared().eval()
    expected = outputs(model)
    answers: list[Tensor] = []

    def work() -> None:
        answers.extend(outputs(model) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40 and all(torch.equal(answer, expected) for answer in answers)


def test_a_thread_may_drop_kept_weights_while_another_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shared().eval()
    outputs(model)
    sums = weights._sums

    def forgotten_meanwhile(tensors: Sequence[Tensor]) -> list[Tensor]:
        own.forget()
        return sums(tensors)

    own = model.__dict__["_npas_shared"]
    monkeypatch.setattr(weights, "_sums", forgotten_meanwhile)
    assert "npas_bank_0" in model.state_dict()


def test_a_thread_may_step_while_another_copies_or_loads_a_network() -> None:
    """The network whose copy is not whole yet has no parameters."""
    model = shared()
    loss(model).backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    root = model.__class__.__new__(model.__class__)
    state = model.__dict__["_npas_shared"].__getstate__() | {"root": root}
    half_made = weights.SharedWeights.__new__(weights.SharedWeights)
    half_made.__setstate__(state)
    optimizer.step()


def fused_step(model: nn.Module, name: str) -> None:
    torch.optim.__dict__[name](model.parameters(), lr=0.1, fused=True).step()


def scaled_step(model: nn.Module) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    scaler.step(torch.optim.SGD(model.parameters(), lr=0.1, fused=True))
    scaler.update()


def silently(model: nn.Module) -> None:
    """Write to the bank as `.data`, numpy and collectives do: no version counter moves."""
    version = bank(model)._version
    bank(model).data.mul_(2)
    assert bank(model)._version == version


def in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        bank(model).mul_(2)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "foreach step": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, foreach=True).step(),
    "fused SGD": lambda m: fused_step(m, "SGD"),
    "fused AdamW": lambda m: fused_step(m, "AdamW"),
    "fused step of a scaler": scaled_step,
    "in inference mode": in_inference_mode,
    "silently, then eval()": lambda m: (silently(m), m.eval()),
    "silently, then train() and eval()": lambda m: (m.train(), silently(m), m.eval()),
    "silently, then a part's eval()": lambda m: (silently(m), m.get_submodule("stage1").eval()),
    "silently, then eval() of a model around": lambda m: (silently(m), nn.Sequential(m).eval()),
    "silently, then a partial state": lambda m: (silently(m), m.load_state_dict({}, strict=False)),
    "silently, then a state around": lambda m: (
        silently(m),
        nn.Sequential(m).load_state_dict({}, strict=False),
    ),
    "parameter replaced": lambda m: setattr(m, "npas_bank_0", nn.Parameter(2 * bank(m).detach())),
    "data replaced": lambda m: setattr(bank(m), "data", 2 * bank(m).data),
    "state loaded": lambda m: m.load_state_dict({k: 2 * v for k, v in m.state_dict().items()}),
    "counter moved by hand": lambda m: (
        bank(m).data.mul_(2),
        torch.autograd.graph.increment_version(bank(m)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_evaluations_is_seen(change: str) -> None:
    """Also where the counter of a parameter's versions stands still, as in fused optimizers."""
    model = shared().train()
    loss(model).backward()
    model.eval()
    before = outputs(model)
    CHANGES[change](model)
    after = outputs(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, outputs(copy.deepcopy(model))), "as generated again"


def test_materializing_reads_the_bank_as_it_is() -> None:
    """Not the weights that the evaluation before has kept."""
    model = shared().eval()
    outputs(model)
    silently(model)
    expected = outputs(copy.deepcopy(model))
    assert torch.equal(outputs(npas.materialize(model)), expected)
    assert not model._load_state_dict_post_hooks and type(model.eval()).train is nn.Module.train


def test_a_change_of_a_parametrized_bank_is_seen() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model = shared(2.5).eval()
    names = ["npas_bank_0", next(n for n, _ in model.named_parameters() if "coefficients" in n)]
    expected = outputs(model)
    for name in names:
        nn.utils.parametrize.register_parametrization(model, name, Double())
        assert not torch.equal(outputs(model), expected)
        with torch.no_grad():
            model.get_parameter(f"parametrizations.{name}.original").mul_(0.5)
        assert torch.equal(outputs(model), expected)
    loss(model).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "parametrizations" in n)


def test_a_teacher_that_follows_through_data_is_never_stale() -> None:
    """Self-distillation writes its momentum average through `.data`, which moves no counter."""
    student = shared().eval()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(3):
        before = outputs(teacher)
        optimizer.zero_grad()
        loss(student).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.data.mul_(0.5).add_(fast.data, alpha=0.5)
        after = outputs(teacher)
        assert not torch.equal(after, before)
        assert torch.equal(after, outputs(copy.deepcopy(teacher)))


def test_moving_averages_follow_and_renew_their_norms() -> None:
    model = shared()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = bank(model).detach().clone()
    average.eval()
    for step in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        average.update_parameters(model)
        # The first update copies, the others average.
        now = bank(model).detach().clone()
        expected = now if step == 0 else 0.5 * (expected + now)
        torch.testing.assert_close(bank(average.module), expected)
        fresh = outputs(copy.deepcopy(average.module))
        assert torch.equal(outputs(average), fresh), "evaluated between updates, never stale"
    norm = average.module.get_submodule("stage1.0.norm")
    before = norm.get_buffer("running_mean").clone()
    update_bn([(INPUTS, LABELS)], average)
    assert not torch.equal(norm.get_buffer("running_mean"), before)
    assert any(name == "module.npas_bank_0" for name in average.state_dict())


def test_kept_weights_serve_training_that_follows() -> None:
    model = shared().eval()
    with torch.inference_mode():
        model(INPUTS)
    loss(model).backward()
    assert bank(model).grad is not None
    with torch.inference_mode():
        seen = model(INPUTS)
    assert torch.equal(seen, outputs(model))
