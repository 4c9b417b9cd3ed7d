"""When weights are generated, how long they are cached, and what invalidates them."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from tiny import INPUTS, bank, loss, outputs, shared
from torch import nn
from zoo import ZOO, Residual

import npas


def layers(model):
    return len(npas.allocation(model).layers)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_generates_every_weight_once(mode, generated):
    model = shared().eval()
    with mode():
        for _ in range(5):
            model(INPUTS)
    assert len(generated) == len(set(generated)) == layers(model)


def test_threads_that_evaluate_one_network_read_the_same_weights():
    model = shared().eval()
    expected = outputs(model)
    answers = []

    def work():
        answers.extend(outputs(model) for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40 and all(torch.equal(answer, expected) for answer in answers)


def fused_step(model, name):
    torch.optim.__dict__[name](model.parameters(), lr=0.1, fused=True).step()


def scaled_step(model):
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))
    scaler.step(torch.optim.SGD(model.parameters(), lr=0.1, fused=True))
    scaler.update()


def silently(model):
    """Write to the bank as `.data`, numpy and collectives do: no version counter moves."""
    version = bank(model)._version
    bank(model).data.mul_(2)
    assert bank(model)._version == version


def in_inference_mode(model):
    with torch.inference_mode():
        bank(model).mul_(2)


CHANGES = {
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
def test_a_change_between_two_evaluations_is_seen(change):
    """Also where the counter of a parameter's versions stands still, as in fused optimizers."""
    model = shared().train()
    loss(model).backward()
    model.eval()
    before = outputs(model)
    CHANGES[change](model)
    after = outputs(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, outputs(copy.deepcopy(model))), "as generated again"


def test_a_teacher_that_follows_through_data_is_never_stale():
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


def test_kept_weights_serve_training_that_follows():
    model = shared().eval()
    with torch.inference_mode():
        model(INPUTS)
    loss(model).backward()
    assert bank(model).grad is not None
    with torch.inference_mode():
        seen = model(INPUTS)
    assert torch.equal(seen, outputs(model))


def test_a_layer_used_three_times_is_generated_once(generated):
    specimen = next(s for s in ZOO if s.name == "reused")
    model = npas.share(specimen.make(), 1.0)
    inputs, labels = specimen.batch()
    F.cross_entropy(model(inputs), labels).backward()
    assert sorted(generated) == [0, 1, 2]  # type: ignore[type-var]
    model(inputs)
    assert len(generated) == 6, "the next pass generates again"

    generated.clear()
    with torch.no_grad():
        model(inputs)
        model(inputs)
    assert len(generated) == 3, "without gradients, weights are kept"
    with torch.no_grad():
        model.get_parameter("npas_bank_0").mul_(1.5)
        changed = model(inputs)
    assert len(generated) == 6, "until the bank changes"
    assert torch.equal(changed, model(inputs).detach())
    with torch.inference_mode():
        model(inputs)
        model.double()(inputs.double())
    assert len(generated) == 15, "or the dtype does"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_forward_leaves_no_stale_weights(error):
    model = npas.share(Residual(), 0.3, generator="wavg").eval()
    inputs = torch.randn(2, 3, 6, 6)

    def interrupt(*_):
        raise error

    handle = model.get_submodule("stage2").register_forward_pre_hook(interrupt)
    with torch.no_grad(), pytest.raises(error):
        model(inputs)
    handle.remove()
    with torch.no_grad():
        model(inputs)
        model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()})
        assert torch.equal(model(inputs), copy.deepcopy(model)(inputs))
    for _ in range(2):
        model(inputs).sum().backward()
        with torch.no_grad():
            model.get_parameter("npas_bank_0").add_(0.1)


@pytest.mark.parametrize(
    ("generator", "upsampler", "budget"),
    [("emb", "inter", 2.5), ("wavg", "wavg", 0.1), ("hash", "inter", 0.1)],
)
def test_weights_kept_under_autocast_are_the_full_ones(generator, upsampler, budget):
    model = npas.share(Residual(), budget, generator=generator, upsampler=upsampler).eval()
    inputs = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        fresh = copy.deepcopy(model)(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(inputs)
        assert torch.equal(model(inputs), fresh)


def test_threads_that_train_one_network_do_not_mix_their_passes():
    model = npas.share(Residual(), 0.3, generator="wavg").eval()
    failures = []

    def work():
        try:
            for _ in range(5):
                model(torch.randn(2, 3, 6, 6)).sum().backward()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_network_nested_as_deep_as_a_dense_one_can_be_is_called():
    inner = nn.Linear(4, 4)
    for _ in range(150):
        inner = nn.Sequential(nn.Linear(4, 4), inner)
    model = npas.share(inner, 0.5)
    model.train()(torch.ones(1, 4)).sum().backward()
    assert bank(model).grad is not None


def test_a_part_called_by_itself_generates_once_a_call(generated):
    model = npas.share(nn.ModuleList([nn.Sequential(*3 * [nn.Linear(8, 8)])]), 0.9)
    parts = [m.get_submodule("0") for m in (copy.deepcopy(model), model)]
    for calls in range(1, 7):  # the first finds the call on the stack, the others have hooks
        parts[calls % 2](torch.ones(2, 8)).sum().backward()
        assert len(generated) == calls
