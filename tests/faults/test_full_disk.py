"""A disk that fills up ends a run in one line; what was saved is whole, and the run goes on."""

import errno
import os
import signal

import pytest
from processes import newest

pytestmark = pytest.mark.fault

# From the sixth step on a file may grow to 10 kB: the log fits, a network does not.
FULL = {"step": 6, "limit": 10_000}
TOO_LARGE = os.strerror(errno.EFBIG)  # what the limit says, as a full disk would of itself


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_that_does_not_fit_fails_the_run_and_not_the_one_before(
    trainings, straight, ranks
):
    overrides = ("epochs=2", "optim.milestones=[1]")
    if ranks == 1:
        ended = [trainings.run(*overrides, fault=FULL)]
        (line,) = ended[0].err.splitlines()
        assert line.startswith("npas-train: failed: ") and "the same command" in line
    else:
        ended = trainings.run_ranks(2, *overrides, faults={0: FULL})
    assert [each.code for each in ended] == [1] * ranks and TOO_LARGE in ended[0].err
    folder = trainings.folder
    assert trainings.result().status == "failed"
    assert newest(folder).state["progress"]["step"] == 4
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    trainings.check_ended(straight(*overrides, ranks=ranks), *overrides, ranks=ranks)


def test_a_preempted_run_whose_checkpoint_does_not_fit_says_that_it_failed(trainings):
    ended = trainings.run(fault={**FULL, "signals": [int(signal.SIGTERM)]})
    assert ended.code == 1  # and not 75: nothing was saved
    assert trainings.result().status == "failed"
    assert newest(trainings.folder).state["progress"]["step"] == 4
