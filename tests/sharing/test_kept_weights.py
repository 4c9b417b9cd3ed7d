"""Without gradients weights are generated once and kept, and never outlive what they came from."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from tiny import INPUTS, bank, loss, outputs, shared
from torch import Tensor, nn

import npas


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


def test_kept_weights_serve_training_that_follows() -> None:
    model = shared().eval()
    with torch.inference_mode():
        model(INPUTS)
    loss(model).backward()
    assert bank(model).grad is not None
    with torch.inference_mode():
        seen = model(INPUTS)
    assert torch.equal(seen, outputs(model))
