"""trainer.max_seconds: the training ends by the clock, with its schedule at the end."""

import json

import pytest

from npas.cli.experiments import restore
from npas.sharing.trained import pruning
from npas.training import build, metrics, train
from npas.training.state import TrainState


def rates(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [line["lr"] for line in map(json.loads, lines) if "lr" in line]


def test_the_clock_ends_a_training_and_its_schedule(run_small, small, tmp_path, monkeypatch):
    """Every step, and every look at the clock between, takes a second of a clock of our own."""
    now = [0.0]

    def tick(state):
        now[0] += 1
        return now[0]

    monkeypatch.setattr(TrainState, "elapsed_s", tick)
    keys = {"trainer": {"max_seconds": 9.0, "log_every": 1}, "optim": {"schedule": "linear"}}
    keys["optim"]["milestones"] = []  # type: ignore[assignment]
    _, outcome = run_small(**keys)
    assert outcome.status == "done" and outcome.metrics["last"]["accuracy"] > 0
    # The epoch that was cut short is measured as that one, not once more as the one before.
    assert outcome.history is not None and outcome.history["epoch"] == [1, 2]
    assert restore(str(tmp_path / "run"), {}).unfinished is None
    found = rates(tmp_path / "run")
    assert outcome.steps == len(found) < 10
    assert found == sorted(found, reverse=True) and found[-1] < 0.04
    # What was saved is read again, and has nothing left to do.
    again = train(build(small(**keys)), tmp_path / "run")
    assert (again.status, again.steps) == ("done", outcome.steps)
    assert again.metrics["last"] == outcome.metrics["last"]


@pytest.mark.parametrize("during", ["a step", "validation"])
def test_filters_are_pruned_and_trained_once_more_when_time_runs_out(
    during, run_small, monkeypatch
):
    """The clock leaps from the first epoch to past the end, whatever takes so long."""
    now, measured = [0.0], metrics.measure

    def leap(*args):
        now[0] = 100.0
        return measured(*args)

    def tick(state):
        if during == "a step" and state.progress.step == 3:
            now[0] = 100.0
        return now[0]

    monkeypatch.setattr(TrainState, "elapsed_s", tick)
    if during == "validation":
        monkeypatch.setattr(metrics, "measure", leap)
    keys = {"method": "magnitude", "schedule": "gradual", "start": 0.6, "end": 0.9, "times": 2}
    experiment, outcome = run_small(pruning=keys, trainer={"max_seconds": 50.0})
    kept = pruning.kept_filters(experiment.model).values()
    assert [int(mask_F.sum()) for mask_F in kept] == [4, 8, 16]
    assert outcome.status == "done" and outcome.steps == {"a step": 4, "validation": 6}[during]
    assert outcome.metrics["selected"] == outcome.metrics["last"]
