"""A signal ends a run after its step, saved; the same command goes on as if nothing had been."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import (
    PREEMPTED,
    TIMEOUT,
    WORDS,
    Ended,
    Trainings,
    differences,
    folder_in,
    folder_or_none,
    left_behind,
    lines_in,
    newest,
    result,
    wait_until,
)

pytestmark = pytest.mark.fault

TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)
USR1, USR2 = int(signal.SIGUSR1), int(signal.SIGUSR2)
Straight = Callable[..., Path]

LEARNED = ("sharing.groups=learned", "sharing.num_groups=2", "sharing.search.epochs=1")


def goes_on(trainings: Trainings, expected: Path, *words: str) -> None:
    """Check that the same command ends the run, equal to one that nothing disturbed."""
    ended = trainings.run(*words)
    assert ended.code == 0, ended.err
    assert "resuming from" in ended.err
    folder = folder_in(trainings.home / "runs")
    assert differences(folder, expected) == []
    assert left_behind(folder) == []


def check_preempted(ended: Ended, folder: Path, step: int) -> None:
    """Check that the run ended as preempted, with a checkpoint of exactly this step."""
    assert ended.code == PREEMPTED, ended.err
    assert "Traceback" not in ended.err
    assert f"preempted: stopped by a signal after step {step}" in ended.err
    found = result(folder)
    assert (found.status, found.steps) == ("preempted", step)
    assert found.metrics is None or not found.metrics.last
    assert newest(folder).state["progress"]["step"] == step


CASES: dict[str, tuple[int, tuple[str, ...], dict[str, Any]]] = {
    "SIGTERM": (TERM, (), {}),
    "SIGINT": (INT, (), {}),
    "SIGUSR1": (USR1, (), {}),
    "SIGUSR2": (USR2, (), {}),
    "SIGTERM to all, data workers": (TERM, ("data.workers=2",), {"group": True}),
    "SIGUSR1 to all, data workers": (USR1, ("data.workers=2",), {"group": True}),
    "two at once": (TERM, (), {"signals": [TERM, TERM, INT]}),
    "grad_accum_steps": (TERM, ("trainer.grad_accum_steps=2",), {}),
    "averaged weights": (TERM, ("optim.ema_decay=0.9",), {}),
    "seldom logged": (TERM, ("trainer.log_every=3",), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_to_the_bit(
    trainings: Trainings, straight: Straight, case: str
) -> None:
    number, words, more = CASES[case]
    trouble = {"step": 6, "signals": [number], **more}
    ended = trainings.run(*words, trouble=trouble)
    check_preempted(ended, folder_in(trainings.home / "runs"), step=6)
    goes_on(trainings, straight(*words), *words)


def test_a_run_may_be_stopped_again_and_again(trainings: Trainings, straight: Straight) -> None:
    step = 0
    for taken in (3, 1, 4, 3):  # after an epoch's last step, too
        step += taken
        ended = trainings.run(trouble={"step": taken, "signals": [TERM]})
        check_preempted(ended, folder_in(trainings.home / "runs"), step)
    goes_on(trainings, straight())


@pytest.mark.parametrize("taken", [2, 4, 7], ids=["in the search", "at its end", "after it"])
def test_a_signal_in_or_after_the_search_for_groups(
    trainings: Trainings, straight: Straight, taken: int
) -> None:
    ended = trainings.run(*LEARNED, trouble={"step": taken, "signals": [TERM]})
    assert ended.code == PREEMPTED, ended.err
    folder = folder_in(trainings.home / "runs")
    assert result(folder).status == "preempted"
    goes_on(trainings, straight(*LEARNED), *LEARNED)


@pytest.mark.parametrize("number", [TERM, USR1])
def test_a_second_signal_ends_a_run_at_once(trainings: Trainings, number: int) -> None:
    run = trainings.start(trouble={"step": 6, "sleep": 300})
    wait_until((trainings.home / "asleep").exists, "the long step")
    run.signal(number)
    time.sleep(1.3)
    assert not run.has_ended  # the step is not at its end
    run.signal(number)
    assert run.wait(5).code == 128 + number
    assert newest(folder_in(trainings.home / "runs")).state["progress"]["step"] == 4


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_before_the_first_step_loses_nothing(
    trainings: Trainings, straight: Straight, number: int
) -> None:
    run = trainings.start()
    wait_until(lambda: "budget " in run.printed("out"), "the plan")
    run.signal(number)
    ended = run.wait(TIMEOUT)
    assert ended.code == PREEMPTED, ended.err
    assert "Traceback" not in ended.err
    assert trainings.run().code == 0
    assert differences(folder_in(trainings.home / "runs"), straight()) == []


def test_ctrl_c_to_the_command_itself(trainings: Trainings, straight: Straight) -> None:
    # Nothing is forked or patched here: the command line as a user starts it, and a signal to it
    # and to its data workers some time after the second step, wherever that finds them.
    run = trainings.execute("python", "-m", "npas.cli.train", *WORDS, "data.workers=2")
    wait_until(lambda: lines_in(folder_or_none(trainings.home / "runs")) >= 2, "two steps")
    run.signal_group(INT)
    ended = run.wait(TIMEOUT)
    folder = folder_in(trainings.home / "runs")
    check_preempted(ended, folder, step=result(folder).steps)
    goes_on(trainings, straight("data.workers=2"), "data.workers=2")
