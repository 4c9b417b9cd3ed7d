"""A config becomes a task and a network inside its budget, the same for the same seed."""

import pytest
import torch

from npas.config import TrainerConfig
from npas.sharing import count_parameters
from npas.training import build
from npas.training.distributed import Process, this_process
from npas.training.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("budget", ["0.3", "2.0", "10K", None])
def test_a_budget_is_kept_and_accounted_for(small, budget):
    sharing = {"groups": "shape", "templates": None if budget else 2, "max_templates": 3}
    experiment = build(small(budget=budget, sharing=sharing, model={"depth": 16}))
    assert experiment.allocation is not None and len(experiment.allocation.groups) > 1
    asked = experiment.allocation.budget
    assert count_parameters(experiment.model) == asked.used <= asked.allowed
    assert experiment.task.parts == {}  # no data are read yet


def test_the_dense_budget_shares_nothing_and_an_impossible_one_is_refused(small):
    experiment = build(small(budget="dense"))
    assert experiment.allocation is None
    assert not [name for name, _ in experiment.model.named_parameters() if "npas" in name]
    with pytest.raises(ValueError, match="smallest"):
        build(small(budget="0.001"))


def test_a_missing_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"set trainer\.device=auto"):
        this_process(TrainerConfig(device="cuda"))
    process = this_process(TrainerConfig(device="auto"))
    assert (process.device, process.is_main, process.world) == (CPU, True, 1)


def test_the_batch_arithmetic_is_reported(small):
    assert build(small()).batch_arithmetic() == "256"
    experiment = build(small(trainer={"grad_accum_steps": 4}))
    assert experiment.batch_arithmetic() == "256 = 4 parts x 64"
    experiment.process = Process(0, 2, CPU)
    assert experiment.batch_arithmetic() == "256 = 2 ranks x 4 parts x 32"
    with pytest.raises(ValueError, match="the nearest that is: 255"):
        build(small(trainer={"grad_accum_steps": 3}))


def test_a_precision_the_device_lacks_is_one_line(monkeypatch):
    scalers = {name: Precision(name, CPU).scaler for name in ("fp32", "bf16", "fp16")}
    assert [name for name, scaler in scalers.items() if scaler is not None] == ["fp16"]

    def fail(*_):
        raise RuntimeError('"slow_conv2d" not implemented for Half')

    monkeypatch.setattr("npas.training.precision.F.conv2d", fail)
    with pytest.raises(ValueError, match="precision=fp16 does not run on cpu"):
        Precision("fp16", CPU)
