"""Soft sharing in training: the regularizer, the logged similarity and the history of metrics."""

import json

import pytest
import torch
from trained import log, same

from npas.sharing import recurrence_reward, similarity
from npas.training import build
from npas.training.loop import gradient
from npas.training.optim import build_optimizer
from npas.training.precision import Precision

SOFT = {
    "budget": None,
    "model": {"depth": 16},
    "sharing": {"templates": 2, "groups": {"stages.0.[!0]*.conv*": "a", "stages.1.1.*": "b"}},
}


def soft(**sharing):
    return SOFT | {"sharing": SOFT["sharing"] | sharing}


def similarities(folder):
    return [line for line in log(folder) if "similarity" in line]


def mean_similarity(model):
    return sum(found.matrix_LL.mean().item() for found in similarity(model)) / 2


@pytest.mark.slow
def test_layers_grow_alike_and_what_is_logged_changes_nothing(run_small, tmp_path):
    without, one = run_small("without", **soft())
    with_it, _ = run_small("with", **soft(recurrence_weight=30.0))
    assert mean_similarity(with_it.model) > 0.9 > mean_similarity(without.model)
    logged = [line for line in log(tmp_path / "with") if "train/loss" in line]
    assert all(-1 <= line["train/recurrence"] <= 1 for line in logged)
    assert all(line["train/loss"] > 0 for line in logged)  # the reward is not among it
    assert "train/recurrence" not in (tmp_path / "without" / "log.jsonl").read_text()
    followed, other = run_small("followed", **soft(lsm_every=1))
    assert one.metrics == other.metrics and same(without.model, followed.model)


def test_the_gradient_is_the_losses_less_the_rewards(small):
    def found(model):
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    def gradients(regularizer):
        experiment = build(small(**soft()))
        experiment.task.setup()
        batch = next(iter(experiment.task.train_batches(0, 64)))
        optimizer = build_optimizer(experiment.model, experiment.config.optim)
        torch.manual_seed(0)
        precision = Precision("fp32", experiment.process.device)
        gradient(experiment.task, experiment.model, [batch], optimizer, precision, regularizer)
        return found(experiment.model)

    model = build(small(**soft())).model
    recurrence_reward(model).backward()
    rewards = found(model)
    plain, regularized = gradients(0.0), gradients(0.5)
    assert set(rewards) == {"npas_coefficients_0_2", "npas_coefficients_1_2"}
    for name, grad in plain.items():
        expected = grad - 0.5 * rewards[name] if name in rewards else grad
        torch.testing.assert_close(regularized[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_log_and_history(run_small, interrupt, tmp_path):
    case = {"epochs": 3, **soft(lsm_every=2, recurrence_weight=0.1)}
    _, straight = run_small("straight", **case)
    # Killed in its first epoch, it logs its start once.
    (tmp_path / "resumed").mkdir()
    start = {"step": 0, "epoch": 0, "similarity": []}
    (tmp_path / "resumed" / "log.jsonl").write_text(json.dumps(start) + "\n")
    interrupt(2, "resumed", **case)
    _, resumed = run_small("resumed", **case)
    assert resumed.history == straight.history
    assert straight.history is not None and straight.history["epoch"] == [1, 2, 3]
    assert set(straight.history) == {"epoch", "val/accuracy", "val/loss"}
    lines = similarities(tmp_path / "straight")  # every so many epochs, and at both ends
    assert similarities(tmp_path / "resumed") == lines
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 0), (2, 10), (3, 15)]
    assert [group["group"] for group in lines[0]["similarity"]] == ["a", "b"]
    layers = ["stages.0.1.conv1.weight", "stages.0.1.conv2.weight"]
    assert lines[-1]["similarity"][0]["layers"] == layers
