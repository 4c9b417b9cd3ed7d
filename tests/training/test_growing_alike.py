"""Soft sharing in training: the regularizer, the logged similarity and the history of metrics."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from npas.sharing import similarity
from npas.training import build, train
from npas.training.loop import gradient
from npas.training.optim import build_optimizer
from npas.training.precision import Precision
from npas.training.state import TrainState

SOFT: dict[str, Any] = {
    "budget": None,
    "model": {"depth": 16},
    "sharing": {"templates": 2, "groups": {"stages.0.[!0]*.conv*": "a", "stages.1.1.*": "b"}},
}


def soft(**sharing: Any) -> dict[str, Any]:
    return SOFT | {"sharing": SOFT["sharing"] | sharing}


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def mean_similarity(model: torch.nn.Module) -> float:
    return sum(found.matrix_LL.mean().item() for found in similarity(model)) / 2


def test_the_regularizer_makes_layers_alike_and_leaves_the_logged_loss_alone(
    run_small, tmp_path: Path
) -> None:
    without, _ = run_small("without", **soft())
    with_it, _ = run_small("with", **soft(recurrence_weight=30.0))
    assert mean_similarity(with_it.model) > 0.9 > mean_similarity(without.model)
    lines = read(tmp_path / "with")
    logged = [line for line in lines if "train/loss" in line]
    assert all(-1 <= line["train/recurrence"] <= 1 for line in logged)
    assert all(line["train/loss"] > 0 for line in logged)  # the reward is not among it
    assert "train/recurrence" not in (tmp_path / "without" / "log.jsonl").read_text()


def test_the_gradient_is_the_losses_less_the_rewards(small) -> None:
    def gradients(regularizer: float) -> dict[str, torch.Tensor]:
        experiment = build(small(**soft()))
        experiment.task.setup()
        batch = next(iter(experiment.task.train_batches(0, 64)))
        optimizer = build_optimizer(experiment.model, experiment.config.optim)
        torch.manual_seed(0)
        precision = Precision("fp32", experiment.process.device)
        gradient(experiment.task, experiment.model, [batch], optimizer, precision, regularizer)
        return {n: p.grad for n, p in experiment.model.named_parameters() if p.grad is not None}

    from npas.sharing import recurrence_reward

    experiment = build(small(**soft()))
    recurrence_reward(experiment.model).backward()
    rewards = {n: p.grad for n, p in experiment.model.named_parameters() if p.grad is not None}
    plain, regularized = gradients(0.0), gradients(0.5)
    assert set(rewards) == {"npas_coefficients_0_2", "npas_coefficients_1_2"}
    for name, grad in plain.items():
        expected = grad - 0.5 * rewards[name] if name in rewards else grad
        torch.testing.assert_close(regularized[name], expected, rtol=1e-4, atol=1e-6)


def test_a_regularizer_without_a_use_is_refused_before_any_step(small) -> None:
    with pytest.raises(
        ValueError, match=r"sharing.recurrence_weight=0.1 has no use: no two layers"
    ):
        build(small(budget="0.5", sharing={"groups": "shape", "recurrence_weight": 0.1}))


def test_the_similarity_is_logged_every_so_many_epochs_and_at_both_ends(
    run_small, tmp_path: Path
) -> None:
    _, _ = run_small(epochs=5, **soft(lsm_every=2))
    lines = read(tmp_path / "run")
    found = [line for line in lines if "similarity" in line]
    assert [(line["epoch"], line["step"]) for line in found] == [(0, 0), (2, 10), (4, 20), (5, 25)]
    assert [group["group"] for group in found[0]["similarity"]] == ["a", "b"]
    assert found[-1]["similarity"][0]["layers"] == [
        "stages.0.1.conv1.weight",
        "stages.0.1.conv2.weight",
    ]


def test_logging_the_similarity_changes_nothing_that_is_trained(run_small) -> None:
    logged, one = run_small("logged", **soft(lsm_every=1))
    silent, other = run_small("silent", **soft())
    assert one.metrics == other.metrics
    ours, theirs = logged.model.state_dict(), silent.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_has_the_same_log_and_history(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    config = small(epochs=3, **soft(lsm_every=1, recurrence_weight=0.1))
    straight = train(build(config), tmp_path / "straight")

    class Stopped(Exception):
        pass

    save = TrainState.save

    def save_and_stop(self: TrainState) -> None:
        save(self)
        if self.progress.epoch == stop:
            raise Stopped

    monkeypatch.setattr(TrainState, "save", save_and_stop)
    with pytest.raises(Stopped):
        train(build(config), tmp_path / "resumed")
    monkeypatch.undo()
    resumed = train(build(config), tmp_path / "resumed")
    assert resumed.history == straight.history
    assert straight.history is not None
    assert straight.history["epoch"] == [1, 2, 3]
    assert set(straight.history) == {"epoch", "val/accuracy", "val/loss"}

    def similarities(folder: str) -> list[dict[str, Any]]:
        lines = read(tmp_path / folder)
        return [line for line in lines if "similarity" in line]

    assert similarities("resumed") == similarities("straight")
    assert [line["epoch"] for line in similarities("resumed")] == [0, 1, 2, 3]


def test_a_run_killed_in_its_first_epoch_logs_its_start_once(small, tmp_path: Path) -> None:
    config = small(epochs=1, **soft(lsm_every=1))
    folder = tmp_path / "run"
    folder.mkdir()
    start = {"step": 0, "epoch": 0, "similarity": []}
    (folder / "log.jsonl").write_text(json.dumps(start) + "\n")
    train(build(config), folder)
    lines = read(folder)
    assert [line["step"] for line in lines if "similarity" in line] == [0, 5]


def test_a_run_without_held_out_data_has_no_history(run_small) -> None:
    _, outcome = run_small(data={"val_fraction": 0.0}, epochs=1)
    assert outcome.history is None
