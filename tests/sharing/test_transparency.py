"""A shared network behaves as any module: passes, copies, files, threads, interruptions."""

import copy
import itertools
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from zoo import ZOO, Residual

import npas


def test_a_layer_used_three_times_is_generated_once(generated: list[object]) -> None:
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
