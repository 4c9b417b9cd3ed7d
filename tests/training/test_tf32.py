"""TF32 is off in every kernel unless it is asked for."""

import pytest
import torch
from torch import backends

from npas.config import config_hash
from npas.training import build
from npas.training.seeding import set_tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # whose switches can be set without one


def switches():
    """Read every switch in both of torch's interfaces; RuntimeError where they contradict."""
    return {
        "convolutions": backends.cudnn.conv.fp32_precision,
        "RNNs": backends.cudnn.rnn.fp32_precision,
        "products": backends.cuda.matmul.fp32_precision,
        "cuDNN": backends.cudnn.allow_tf32,
        "cuBLAS": backends.cuda.matmul.allow_tf32,
        "by name": torch.get_float32_matmul_precision(),
    }


@pytest.fixture(autouse=True)
def as_before():
    """Put torch's defaults back."""
    yield
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    assert switches()["cuDNN"] is True and switches()["cuBLAS"] is False


@pytest.mark.parametrize("changes", [(False,), (True,), (True, False), (False, True)])
@pytest.mark.parametrize("before", ["nothing", "the older interface", "the newer interface"])
def test_all_switches_agree_whatever_was_set_before(changes, before):
    if before == "the older interface":
        torch.set_float32_matmul_precision("high")
    elif before == "the newer interface":
        backends.cudnn.conv.fp32_precision = backends.cuda.matmul.fp32_precision = "tf32"
    for tf32 in changes:
        set_tf32(tf32, GPU)
    on = changes[-1]
    name = "tf32" if on else "ieee"
    expected = {"convolutions": name, "RNNs": name, "products": name, "cuDNN": on, "cuBLAS": on}
    assert switches() == {**expected, "by name": "high" if on else "highest"}
    with backends.cudnn.flags(enabled=True):  # reads the older interface, and puts it back
        pass
    assert (switches()["cuDNN"], switches()["cuBLAS"]) == (on, on)


def test_it_is_a_key_of_the_run_that_building_follows(small, monkeypatch, caplog):
    before = switches()
    set_tf32(False, CPU)
    assert caplog.text == ""
    set_tf32(True, CPU)
    assert switches() == before and "trainer.tf32 ignored" in caplog.text
    asked = []
    monkeypatch.setattr("npas.training.seeding.set_tf32", lambda *given: asked.append(given))
    off, on = (small(trainer={"tf32": tf32}) for tf32 in (False, True))
    build(off), build(on)
    assert asked == [(False, CPU), (True, CPU)]
    assert config_hash(small()) == config_hash(off) != config_hash(on)
