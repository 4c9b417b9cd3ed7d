"""A sweep given to submitit runs, and a job that is preempted is requeued into the same folder."""

import os
import signal
from pathlib import Path

import pytest
from processes import differences, wait_until

from npas.reporting import results

pytestmark = pytest.mark.slow  # submitit starts every job in a new interpreter

OVERRIDES = ("-m", "hydra/launcher=submitit_local")


def job_in(home):
    """Return the process that submitit runs a job in."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, cwd = (entry / "cmdline").read_bytes(), os.readlink(entry / "cwd")
        except OSError:  # it has just ended
            continue
        if b"submitit.core._submit" in command and cwd == str(home):
            return int(entry.name)
    raise AssertionError("there is no job")


def test_a_sweep_runs_in_submitits_processes(trainings):
    ended = trainings.run(*OVERRIDES, "seed=0,1")
    assert ended.code == 0, ended.err
    found = {results.read(path.parent).seed for path in trainings.root.glob("*/*/result.json")}
    assert found == {0, 1}
    again = trainings.run("-m", "seed=0,1")
    assert again.code == 0 and again.out.count("skipped") == 4  # said of each, and in the table


@pytest.mark.parametrize("ranks", [1, 2])
def test_submitits_own_signal_requeues_the_job_which_goes_on(trainings, straight, ranks):
    run = trainings.start(*OVERRIDES, "seed=0", f"trainer.devices={ranks}")
    wait_until(lambda: trainings.lines() >= 2, "two steps")
    os.kill(job_in(trainings.home), signal.SIGUSR2)
    ended = run.wait(120)
    assert ended.code == 0, ended.err
    assert differences(trainings.folder, straight("seed=0", ranks=ranks)) == []
    logs = trainings.root.glob(".sweep/.submitit/*/*_0_log.*")
    message = "".join(path.read_text() for path in logs)
    assert "preempted: stopped by a signal" in message and "Requeued job" in message
