"""A shared network behaves as any module: passes, copies, files, threads, interruptions."""

import copy
import gc
import io
import itertools
import pickle
import threading
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, Residual

import npas


def test_a_layer_used_three_times_is_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from npas.sharing.bank import BankReader

    generated: list[object] = []
    mix = BankReader.mix

    def counted(self: BankReader, keys: list[int], *rest: object) -> list[torch.Tensor]:
        generated.extend(keys)
        return mix(self, keys, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BankReader, "mix", counted)
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


def test_submodules_called_directly_work_and_train() -> None:
    model = npas.share(Residual(), 0.3)
    inputs = torch.randn(2, 3, 6, 6)
    by_hand = model.get_submodule("stage1")(model.get_submodule("stem")(inputs))
    by_hand.square().mean().backward()
    gradient = model.get_parameter("npas_bank_0").grad
    assert gradient is not None and bool(gradient.any())
    weight = model.get_submodule("stage2.0.conv1").weight
    assert isinstance(weight, torch.Tensor) and weight.shape == (16, 16, 3, 3)


def test_an_exception_in_forward_leaves_no_pass_open() -> None:
    model = npas.share(Residual(), 0.3)
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 4, 6, 6))
    inputs = torch.randn(1, 3, 6, 6)
    before = model(inputs)
    with torch.no_grad():
        model.get_parameter("npas_bank_0").mul_(2)
    assert not torch.equal(model(inputs), before)


def test_an_exception_in_forward_leaves_no_weights_in_memory() -> None:
    model = npas.share(Residual(), 0.3)
    weights: list[weakref.ref[torch.Tensor]] = []

    def fail(*_: object) -> None:
        weights.append(weakref.ref(model.get_submodule("stem").weight))
        raise ValueError

    model.get_submodule("stage2").register_forward_pre_hook(fail)
    with pytest.raises(ValueError):
        model(torch.randn(1, 3, 6, 6))
    gc.collect()  # the traceback
    assert weights[0]() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_forward_leaves_no_stale_weights(error: type[BaseException]) -> None:
    model = npas.share(Residual(), 0.3).eval()
    inputs = torch.randn(2, 3, 6, 6)

    def interrupt(*_: object) -> None:
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
    ("generator", "upsampler", "budget"), [("emb", "inter", 2.5), ("wavg", "wavg", 0.1)]
)
def test_weights_kept_under_autocast_are_the_full_ones(
    generator: str, upsampler: str, budget: float
) -> None:
    model = npas.share(Residual(), budget, generator=generator, upsampler=upsampler).eval()
    inputs = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        fresh = copy.deepcopy(model)(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(inputs)
        assert torch.equal(model(inputs), fresh)


@torch.no_grad()
def test_replaced_parameters_are_never_taken_for_the_old_ones() -> None:
    model = npas.share(Residual(), 2.5, generator="emb").eval()
    name = next(n for n, _ in model.named_parameters() if n.startswith("npas_affine"))
    inputs = torch.randn(2, 3, 6, 6)
    outputs = [
        torch.func.functional_call(model, {name: model.get_parameter(name) * (1 + i)}, (inputs,))
        for i in range(20)
    ]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs))


def test_threads_that_train_one_network_do_not_mix_their_passes() -> None:
    model = npas.share(Residual(), 0.3).eval()
    failures: list[BaseException] = []

    def work() -> None:
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


def test_recurrent_modules_copy_pickle_and_come_back() -> None:
    specimen = next(s for s in ZOO if s.name == "recurrent")
    model = npas.share(specimen.make(), 0.5).eval()
    inputs, _ = specimen.batch()
    outputs = model(inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(inputs), outputs)
    plain = npas.materialize(model)
    assert torch.equal(copy.deepcopy(plain)(inputs), outputs)
    assert all(isinstance(w, nn.Parameter) for w in plain.get_submodule("rnn")._flat_weights)  # type: ignore[union-attr]


def test_saved_once_and_loaded_into_the_bare_architecture(tmp_path: Path) -> None:
    model = npas.share(Residual(), 0.3, groups="type", generator="emb")
    model.eval()
    npas.save(model, tmp_path / "shared")
    assert {p.name for p in (tmp_path / "shared").iterdir()} == {
        "model.safetensors",
        "allocation.json",
    }
    modes = {path.stat().st_mode for path in (tmp_path / "shared").iterdir()}
    assert len(modes) == 1, "whoever may read the plan may read the weights"
    size = (tmp_path / "shared" / "model.safetensors").stat().st_size
    assert size < 4 * npas.count_parameters(model) + 8_000  # values once, buffers, the header
    loaded = npas.load(tmp_path / "shared", Residual()).eval()
    inputs = torch.randn(2, 3, 6, 6)
    assert torch.equal(loaded(inputs), model(inputs))
    assert npas.allocation(loaded) == npas.allocation(model)


def test_loading_into_another_architecture_is_refused(tmp_path: Path) -> None:
    npas.save(npas.share(Residual(), 0.3), tmp_path)
    with pytest.raises(ValueError, match=r"no stem\.weight of shape \[8, 3, 3, 3\]"):
        npas.load(tmp_path, nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        npas.load(tmp_path / "nowhere", Residual())


def test_pickles_and_state_dicts_carry_a_shared_network() -> None:
    model = npas.share(Residual(), 0.3).eval()
    inputs = torch.randn(2, 3, 6, 6)
    outputs = model(inputs)
    assert torch.equal(pickle.loads(pickle.dumps(model))(inputs), outputs)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = npas.share(ZOO[0].make(seed=5), 0.3, seed=9).eval()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(inputs), outputs), "also where the dense draw was another"
