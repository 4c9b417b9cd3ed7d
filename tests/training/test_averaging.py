"""Averaged weights follow their formula, and are what is measured, exported and resumed from."""

from pathlib import Path

import torch
from torch.optim.swa_utils import update_bn

from npas.tasks import base
from npas.training.averaging import AveragedWeights
from npas.training.checkpoint import Checkpoints
from npas.training.state import load_weights


def test_the_average_is_the_textbooks() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    averaged = AveragedWeights(model, 0.5)
    expected = model[0].weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model[0].weight += 1
        averaged.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(averaged.tensors["0.weight"], expected)
    assert "1.running_mean" in averaged.tensors
    assert "1.num_batches_tracked" not in averaged.tensors  # no average of whole numbers


def test_they_stand_in_for_the_length_of_a_with() -> None:
    model = torch.nn.Linear(3, 2)
    averaged = AveragedWeights(model, 0.9)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    with averaged.in_place():
        assert torch.equal(model.weight, first)
    assert torch.equal(model.weight, first + 1)


def test_they_are_what_is_measured_and_restored(run_small, tmp_path: Path) -> None:
    plain, without = run_small("plain", budget="0.5", epochs=1, optim={"milestones": []})
    experiment, outcome = run_small(
        "averaged", budget="0.5", epochs=1, optim={"milestones": [], "ema_decay": 0.99}
    )
    for name, tensor in plain.model.state_dict().items():  # training itself does not see them
        assert torch.equal(tensor, experiment.model.state_dict()[name]), name
    assert outcome.metrics["last"] != without.metrics["last"]
    newest = Checkpoints(tmp_path / "averaged" / "checkpoints").newest()
    assert newest is not None
    load_weights(experiment.model, newest)
    measured = experiment.task.evaluate(experiment.model, "test")
    assert {k: outcome.metrics["last"][k] for k in measured} == measured


def test_their_batch_norms_have_statistics_of_their_own(run_small, tmp_path: Path) -> None:
    experiment, _ = run_small(
        budget="0.5", model={"dropout": 0.0}, optim={"milestones": [], "ema_decay": 0.9}
    )
    newest = Checkpoints(tmp_path / "run" / "checkpoints").newest()
    assert newest is not None
    model, config = experiment.model, experiment.config
    load_weights(model, newest)
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    batches = base.batches(experiment.task, config.epochs - 1, config.batch_size)
    update_bn((batch.inputs for batch in batches), model)
    renewed = 0
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-5, msg=name)
            renewed += "running" in name
    assert renewed
    assert {norm.momentum for norm in model.modules() if hasattr(norm, "running_mean")} == {0.1}
