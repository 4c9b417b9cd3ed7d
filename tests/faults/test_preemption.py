"""A signal ends a run after its step, saved; the same command resumes it."""

import signal
import time

import pytest
from processes import OVERRIDES, PREEMPTED, TIMEOUT, newest, wait_until

pytestmark = pytest.mark.fault

TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)
USR1, USR2 = int(signal.SIGUSR1), int(signal.SIGUSR2)

LEARNED = ("sharing.groups=learned", "sharing.num_groups=2", "sharing.search.epochs=1")


def check_preempted(trainings, ended, step=None):
    """Check that the run ended as preempted, with a checkpoint of exactly this step."""
    assert ended.code == PREEMPTED, ended.err
    found = trainings.result()
    step = found.steps if step is None else step
    assert f"preempted: stopped by a signal after step {step}" in ended.err
    assert "Traceback" not in ended.err
    assert (found.status, found.steps) == ("preempted", step)
    assert found.metrics is None or not found.metrics.last
    assert newest(trainings.folder).state["progress"]["step"] == step


CASES = {
    "SIGINT": ((), {"signals": [INT]}),
    "SIGUSR2": ((), {"signals": [USR2]}),
    "SIGTERM to all, data workers": (("data.workers=2",), {"signals": [TERM], "group": True}),
    "two at once": ((), {"signals": [TERM, TERM, INT]}),
    "seldom logged": (("trainer.log_every=3",), {"signals": [TERM]}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_to_the_bit(trainings, straight, case):
    overrides, fault = CASES[case]
    ended = trainings.run(*overrides, fault={"step": 6, **fault})
    check_preempted(trainings, ended, step=6)
    trainings.check_ended(straight(*overrides), *overrides)


def test_a_run_may_be_stopped_again_and_again(trainings, straight):
    step = 0
    for taken in (3, 1, 4, 3):  # after an epoch's last step, too
        step += taken
        ended = trainings.run(fault={"step": taken, "signals": [TERM]})
        check_preempted(trainings, ended, step)
    trainings.check_ended(straight())


@pytest.mark.parametrize("taken", [2, 4, 7], ids=["in the search", "at its end", "after it"])
def test_a_signal_in_or_after_the_search_for_groups(trainings, straight, taken):
    ended = trainings.run(*LEARNED, fault={"step": taken, "signals": [TERM]})
    assert ended.code == PREEMPTED, ended.err
    assert trainings.result().status == "preempted"
    trainings.check_ended(straight(*LEARNED), *LEARNED)


def test_a_second_signal_ends_a_run_at_once(trainings):
    run = trainings.start(fault={"step": 6, "sleep": 300})
    wait_until((trainings.home / "asleep").exists, "the long step")
    run.signal(TERM)
    time.sleep(1.3)
    assert not run.has_ended  # the step is not at its end
    run.signal(TERM)
    assert run.wait(5).code == 128 + TERM
    assert newest(trainings.folder).state["progress"]["step"] == 4


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_before_the_first_step_loses_nothing(trainings, straight, number):
    run = trainings.start()
    wait_until(lambda: "budget " in run.printed("out"), "the plan")
    run.signal(number)
    ended = run.wait(TIMEOUT)
    assert ended.code == PREEMPTED and "Traceback" not in ended.err, ended.err
    trainings.check_ended(straight())


def test_ctrl_c_to_the_command_itself(trainings, straight):
    # Nothing is forked or patched here: the command line as a user starts it, and a signal to it
    # and to its data workers some time after the second step, wherever that finds them.
    run = trainings.execute("python", "-m", "npas.cli.train", *OVERRIDES, "data.workers=2")
    wait_until(lambda: trainings.lines() >= 2, "two steps")
    run.signal_group(INT)
    check_preempted(trainings, run.wait(TIMEOUT))
    trainings.check_ended(straight("data.workers=2"), "data.workers=2")
