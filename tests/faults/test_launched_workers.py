"""`trainer.devices=2` starts two workers; the job ends in order whatever happens to one."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from processes import PREEMPTED, TIMEOUT, newest, wait_until

pytestmark = pytest.mark.fault

FAULTY = Path(__file__).resolve().parent / "faulty"
SOON = 60.0


def children(process):
    """List the children of a process that are Python interpreters of its job."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == process and b"spawn_main" in command:
            found.append(int(entry.name))
    return sorted(found)


def all_gone(processes):
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def test_workers_are_stopped_by_a_signal_to_the_command_to_one_of_them_or_to_all(
    trainings, straight
):
    overrides = ("trainer.devices=2", "data.workers=1")
    before = 0

    def to_command(run):
        run.signal(signal.SIGTERM)

    def to_one_worker(run):
        os.kill(children(run.process)[-1], signal.SIGUSR1)

    def to_all(run):
        for process in [run.process, *children(run.process)]:
            os.kill(process, signal.SIGINT)

    for send in (to_command, to_one_worker, to_all):
        run = trainings.start(*overrides)
        wait_until(lambda before=before: trainings.lines() > before, "a step")
        workers = children(run.process)
        assert len(workers) == 2
        send(run)
        ended = run.wait(TIMEOUT)
        assert ended.code == PREEMPTED, f"{send.__name__}: {ended.err}"
        assert "Traceback" not in ended.err, ended.err
        assert all_gone(workers)
        found = trainings.result()
        assert found.status == "preempted"
        assert found.steps == newest(trainings.folder).state["progress"]["step"]
        before = trainings.lines()
    # Started in another way, two ranks go on as well.
    trainings.check_ended(straight("data.workers=1", ranks=2), "data.workers=1", ranks=2)


def test_a_second_signal_ends_command_and_workers_at_once(trainings):
    fault = {"step": 2, "rank": "1", "sleep": 300}
    run = trainings.start("trainer.devices=2", env=faulty(fault))
    wait_until((trainings.home / "asleep").exists, "the long step")
    workers = children(run.process)
    run.signal(signal.SIGTERM)
    time.sleep(1.3)
    assert not run.has_ended
    run.signal(signal.SIGTERM)
    assert run.wait(10).code == 128 + signal.SIGTERM
    wait_until(lambda: all_gone(workers), "the end of the workers", timeout=10)


def faulty(fault):
    """Return the environment in which one rank of a job has this fault."""
    return {"FAULT": json.dumps(fault), "PYTHONPATH": str(FAULTY)}


def test_a_worker_that_fails_ends_the_job_with_its_traceback(trainings):
    fault = {"step": 3, "rank": "1", "raises": "this worker has failed"}
    run = trainings.start("trainer.devices=2", env=faulty(fault))
    wait_until(lambda: trainings.lines() >= 2, "two steps")
    ended = run.wait(SOON)
    assert ended.code == 1
    assert "Traceback" in ended.err and "this worker has failed" in ended.err
    assert ended.err.count("Traceback") == 1, ended.err
    assert all_gone(children(run.process))
    found = trainings.result()
    assert found.status == "failed" and "this worker has failed" in str(found.error)


def test_a_worker_that_is_killed_ends_the_job(trainings):
    run = trainings.start("trainer.devices=2", "epochs=300")
    wait_until(lambda: trainings.lines() >= 2, "two steps")
    workers = children(run.process)
    os.kill(workers[-1], signal.SIGKILL)
    ended = run.wait(SOON)
    assert ended.code == 1
    # Another worker may have had a traceback before, since it lost its peer: the cause comes last.
    assert "was killed by SIGKILL" in ended.err.splitlines()[-1]
    assert all_gone(workers)
    found = trainings.result()
    assert found.status == "failed" and "was killed by SIGKILL" in str(found.error)
