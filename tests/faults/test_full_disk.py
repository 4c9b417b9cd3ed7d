"""A disk that fills up ends a run in one line; what was saved is whole, and the run goes on."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Trainings, differences, folder_in, newest, result

pytestmark = pytest.mark.fault

Straight = Callable[..., Path]
TOO_LARGE = os.strerror(
    errno.EFBIG
)  # what a limit on a file's size says, as a full disk would of itself


def test_a_checkpoint_that_does_not_fit_fails_the_run_and_not_the_one_before(
    trainings: Trainings, straight: Straight
) -> None:
    # From the sixth step on a file may grow to 10 kB: the log fits, a network does not.
    ended = trainings.run(trouble={"step": 6, "limit": 10_000})
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith("npas-train: failed: ") and TOO_LARGE in line
    assert "the same command" in line
    folder = folder_in(trainings.home / "runs")
    assert result(folder).status == "failed"
    assert newest(folder).state["progress"]["step"] == 4
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]
    assert trainings.run().code == 0
    assert differences(folder, straight()) == []


def test_a_preempted_run_whose_checkpoint_does_not_fit_says_that_it_failed(
    trainings: Trainings, straight: Straight
) -> None:
    trouble = {"step": 6, "limit": 10_000, "signals": [int(signal.SIGTERM)]}
    ended = trainings.run(trouble=trouble)
    assert ended.code == 1  # and not 75: nothing was saved
    folder = folder_in(trainings.home / "runs")
    assert result(folder).status == "failed"
    assert newest(folder).state["progress"]["step"] == 4
    assert trainings.run().code == 0
    assert differences(folder, straight()) == []


def test_a_full_disk_of_one_rank_ends_both(trainings: Trainings, straight: Straight) -> None:
    words = ("epochs=2", "optim.milestones=[1]")
    ended = trainings.run_ranks(2, *words, troubles={0: {"step": 6, "limit": 10_000}})
    assert [each.code for each in ended] == [1, 1], ended[0].err + ended[1].err
    assert TOO_LARGE in ended[0].err
    folder = folder_in(trainings.home / "runs")
    assert newest(folder).state["progress"]["step"] == 4
    ended = trainings.run_ranks(2, *words)
    assert [each.code for each in ended] == [0, 0]
    assert differences(folder, straight(*words, ranks=2)) == []
