"""A sweep finishes: done jobs are skipped, failed ones tried again, whatever ended it before."""

import re
import signal

import pytest
from processes import PREEMPTED, TIMEOUT, wait_until

from npas.reporting import results

pytestmark = pytest.mark.fault

SMALL = ("-m", "budget=dense", "epochs=1", "optim.milestones=[]")


def sweep(jobs):
    """Return the overrides of a sweep over this many seeds."""
    return *SMALL, f"seed={','.join(map(str, range(jobs)))}"


def seeds(root, status):
    """List the seeds whose results have this status."""
    found = (results.read(path.parent) for path in root.glob("*/*/result.json"))
    return {each.seed for each in found if each.status == status}


def table(out, jobs):
    """Return the statuses of the table at the end of what a sweep printed, by its jobs."""
    lines = out.splitlines()[-jobs:]
    assert all(re.match(r"\w+ +\S*seed-\d+", line) for line in lines), out
    return [line.split()[0] for line in lines]


def trained(out):
    """Count the jobs whose network was printed: those that were begun."""
    return len(re.findall(r"^dense network: ", out, re.MULTILINE))


def test_a_sweep_that_is_killed_runs_only_what_is_left(trainings):
    root, jobs = trainings.root, 20
    run = trainings.start(*sweep(jobs))
    wait_until(lambda: len(list(root.glob("*/*/result.json"))) >= 7, "seven jobs")
    run.signal(signal.SIGKILL)
    assert run.wait(TIMEOUT).code == 128 + signal.SIGKILL
    done = seeds(root, "done")
    assert 7 <= len(done) < jobs
    before = {path: path.read_bytes() for path in root.glob("*/*/result.json")}
    ended = trainings.run(*sweep(jobs))
    assert ended.code == 0, ended.err
    assert table(ended.out, jobs) == ["skipped" if n in done else "done" for n in range(jobs)]
    assert trained(ended.out) == jobs - len(done)
    assert seeds(root, "done") == set(range(jobs))
    assert {path: path.read_bytes() for path in before} == before


def test_a_signal_ends_the_job_and_the_sweep(trainings):
    root = trainings.root
    ended = trainings.run(*sweep(5), fault={"step": 10, "signals": [int(signal.SIGTERM)]})
    assert ended.code == PREEMPTED, ended.err  # in the third job
    assert "Traceback" not in ended.err
    assert (seeds(root, "done"), seeds(root, "preempted")) == ({0, 1}, {2})
    assert len(list(root.glob("*/*/"))) == 3  # nothing further was begun
    assert table(ended.out, 5) == ["done", "done", "preempted", "waiting", "waiting"]
    ended = trainings.run(*sweep(5))
    assert ended.code == 0, ended.err
    assert table(ended.out, 5) == ["skipped", "skipped", *["done"] * 3]
    assert "after step 2" in ended.err  # the third went on
    assert seeds(root, "done") == set(range(5))


def test_a_job_that_failed_does_not_end_the_sweep_and_is_tried_again(trainings):
    root = trainings.root
    ended = trainings.run(*sweep(4), fault={"step": 6, "raises": "a fault in the second job"})
    assert ended.code == 1
    assert table(ended.out, 4) == ["done", "failed", "done", "done"]
    assert "a fault in the second job" in ended.err
    assert seeds(root, "failed") == {1}
    ended = trainings.run(*sweep(4))
    assert ended.code == 0, ended.err
    assert table(ended.out, 4) == ["skipped", "done", "skipped", "skipped"]
    assert trained(ended.out) == 1
