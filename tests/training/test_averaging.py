"""Averaged weights follow their formula, and are what is measured, exported and resumed from."""

import torch
from torch.optim.swa_utils import update_bn

from npas.training.averaging import AveragedWeights
from npas.training.checkpoint import find_checkpoint
from npas.training.state import load_weights


def test_the_average_is_the_textbooks_and_stands_in_for_the_length_of_a_with():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    averaged = AveragedWeights(model, 0.5)
    expected = model[0].weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model[0].weight += 1
        averaged.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    last = model[0].weight.detach().clone()
    with averaged.in_place():
        torch.testing.assert_close(model[0].weight.detach(), expected)
    assert torch.equal(model[0].weight, last)
    assert "1.running_mean" in averaged.tensors
    assert "1.num_batches_tracked" not in averaged.tensors  # no average of whole numbers


def test_they_are_measured_and_restored_with_statistics_of_their_own(run_small, tmp_path):
    case = {"budget": "0.5", "epochs": 1, "model": {"dropout": 0.0}}
    plain, without = run_small("plain", **case, optim={"milestones": []})
    experiment, outcome = run_small("run", **case, optim={"milestones": [], "ema_decay": 0.99})
    model = experiment.model
    for name, tensor in plain.model.state_dict().items():  # training itself does not see them
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert outcome.metrics["last"] != without.metrics["last"]
    load_weights(model, find_checkpoint(tmp_path / "run"))
    measured = experiment.task.evaluate(model, "test")
    assert {k: outcome.metrics["last"][k] for k in measured} == measured

    stored = {name: value.clone() for name, value in model.state_dict().items()}
    update_bn((batch.inputs for batch in experiment.batches(epoch=0)), model)
    renewed = 0
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-5, msg=name)
            renewed += "running" in name
    assert renewed
    assert {norm.momentum for norm in model.modules() if hasattr(norm, "running_mean")} == {0.1}
