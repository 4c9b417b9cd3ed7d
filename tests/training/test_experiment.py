"""A config becomes a task and a network inside its budget, the same for the same seed."""

import pytest
import torch

from npas.config import TrainerConfig
from npas.sharing import count_parameters
from npas.training import build
from npas.training.distributed import Process, this_process
from npas.training.precision import Precision

CPU = torch.device("cpu")


def test_the_dense_budget_shares_nothing(small) -> None:
    experiment = build(small(budget="dense"))
    assert experiment.allocation is None
    assert not [name for name, _ in experiment.model.named_parameters() if "npas" in name]


@pytest.mark.parametrize("budget", ["0.3", "2.0", "10K"])
def test_a_budget_is_kept_and_accounted_for(small, budget: str) -> None:
    experiment = build(small(budget=budget))
    assert experiment.allocation is not None
    asked = experiment.allocation.budget
    assert count_parameters(experiment.model) == asked.used <= asked.allowed


def test_an_impossible_budget_is_refused(small) -> None:
    with pytest.raises(ValueError, match="smallest"):
        build(small(budget="0.001"))


def test_the_keywords_of_sharing_are_passed_on(small) -> None:
    experiment = build(small(budget="0.5", sharing={"groups": "shape", "max_templates": 3}))
    assert len(experiment.allocation.to_dict()["groups"]) > 1


def test_soft_sharing_has_templates_in_place_of_a_budget(small) -> None:
    config = small(budget=None, sharing={"templates": 2, "groups": "shape"}, model={"depth": 16})
    experiment = build(config)
    assert count_parameters(experiment.model) == experiment.allocation.budget.used


def test_the_seed_fixes_the_initial_network(small) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return list(build(small(budget="0.5", seed=seed)).model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))


def test_building_reads_no_data(small) -> None:
    assert build(small()).task.parts == {}


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"set trainer\.device=auto"):
        this_process(TrainerConfig(device="cuda"))
    process = this_process(TrainerConfig(device="auto"))
    assert (process.device, process.is_main, process.world) == (CPU, True, 1)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(small) -> None:
    with pytest.raises(ValueError, match="the nearest that does is 255"):
        build(small(trainer={"grad_accum_steps": 3}))


def test_the_arithmetic_of_a_batch_is_said(small) -> None:
    assert build(small()).batch_arithmetic() == "256"
    assert build(small(trainer={"grad_accum_steps": 4})).batch_arithmetic() == "256 = 4 parts x 64"
    experiment = build(small(trainer={"grad_accum_steps": 4}))
    experiment.process = Process(0, 2, CPU)
    assert experiment.batch_arithmetic() == "256 = 2 ranks x 4 parts x 32"


def test_a_precision_the_device_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError('"slow_conv2d" not implemented for Half')

    monkeypatch.setattr("npas.training.precision.F.conv2d", fail)
    with pytest.raises(ValueError, match="precision=fp16 does not run on cpu"):
        Precision("fp16", CPU)


def test_only_fp16_scales_its_loss() -> None:
    assert Precision("fp16", CPU).scaler is not None
    assert Precision("bf16", CPU).scaler is None
    assert Precision("fp32", CPU).scaler is None
