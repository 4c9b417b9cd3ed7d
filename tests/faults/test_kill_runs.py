"""The experiment that kills runs at random moments works, and finds nothing that differs."""

import signal

import kill_runs
import pytest

pytestmark = pytest.mark.fault

OVERRIDES = [*kill_runs.OVERRIDES, "epochs=2", "optim.milestones=[1]"]


def test_runs_that_are_killed_at_random_end_as_if_they_had_not_been(forks, tmp_path):
    found = kill_runs.experiment(forks, OVERRIDES, kills=10, seed=5, scratch=tmp_path)
    assert found["summary"]["kills"] == 10 and found["summary"]["runs_that_differ"] == 0
    for trial in found["trials"]:
        assert trial["differing"] == [] and trial["starts"] == len(trial["kills"]) + 1
        for kill in trial["kills"]:
            # The signal's own code: it came before there was a handler for it, or after.
            assert kill["exit_code"] in (75, 128 + signal.Signals[kill["signal"]])
    kill_runs.write(tmp_path / "out" / "kills.json", **found)
    assert (tmp_path / "out" / "kills.json").read_text().count('"signal"') == 10


def test_what_differs_is_found(forks, tmp_path):
    one, _ = kill_runs.undisturbed(forks, OVERRIDES, tmp_path / "one")
    assert kill_runs.differences(one, one) == []
    other, _ = kill_runs.undisturbed(forks, [*OVERRIDES, "seed=1"], tmp_path / "other")
    found = kill_runs.differences(one, other)
    assert {"result.seed", "model.safetensors", "log.jsonl", "rng.safetensors"} <= {*found}
