"""A signal stops at once where nothing is lost, waits where something is, and the second kills."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from npas.utils import signals
from npas.utils.signals import SIGNALS, Preempted, deferred, requested, watching


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be under nohup
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_or_waits_where_it_is_deferred(number: int) -> None:
    with watching():
        with pytest.raises(Preempted):
            send(number)
        assert requested()
    with watching():
        with deferred():
            assert not requested()
            send(number)
            assert requested()
        assert requested()
    assert not requested()


def test_what_a_terminal_and_a_launcher_both_deliver_counts_once() -> None:
    with watching(), deferred():
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert requested()


def test_the_handler_that_was_there_is_called_at_the_end() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with watching():
            with deferred():
                send(signal.SIGTERM)  # as a scheduler does that then sends its own
                send(signal.SIGUSR2)
                send(signal.SIGUSR2)
            assert called == []
        assert called == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_it_is_passed_on_while_others_do_the_work() -> None:
    told: list[int] = []
    with watching():
        with deferred(forward=told.append), deferred():
            send(signal.SIGUSR1)
        assert told == [signal.SIGUSR1]


def test_an_inner_watch_is_the_outer_one() -> None:
    with watching():
        with watching(), deferred():
            send(signal.SIGTERM)
        assert requested()


def test_a_terminal_that_closes_is_no_matter_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watching():
            send(signal.SIGHUP)
            assert not requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_watch_nothing_is_asked_for() -> None:
    with deferred():
        assert not requested()


SECOND = """
import os, signal, time
from npas.utils import signals
signals.SAME_SIGNAL_S = 0.0
with signals.watching(), signals.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, b"")
    assert signals.EXIT_CODE == 75


def left_by(code: str) -> tuple[int, str]:
    """Run this code in a process of its own; return its exit code and what it printed."""
    start = "import atexit, faulthandler, os, signal, sys\n"
    start += "from npas.utils.signals import deferred, watching\n"
    start += "send = lambda number: os.kill(os.getpid(), number)\n"
    words = [sys.executable, "-c", start + code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout


# What comes while a program uses npas, and after: as if npas had not been there.
LIBRARY = {
    "after a use": ("with watching('deliver'): pass\nsend(15)", -15, ""),
    "after a nested use": ("with watching(), watching('deliver'): pass\nsend(15)", -15, ""),
    "while it works": ("with watching('deliver'), deferred(): send(15)\nprint('on')", -15, ""),
    "Ctrl-C": (
        "try:\n with watching('deliver'), deferred(): send(2)\n"
        "except KeyboardInterrupt: print('interrupted')",
        0,
        "interrupted\n",
    ),
    "an error": ("with watching('deliver'), deferred(): send(15); 1 / 0", -15, ""),
    "ignored": (
        "signal.signal(15, signal.SIG_IGN)\n"
        "with watching('deliver'), deferred(): send(15)\nsend(15); print('on')",
        0,
        "on\n",
    ),
    "a handler of C code": (
        "faulthandler.register(signal.SIGUSR1, sys.stdout)\n"
        "with watching('deliver'): pass\nsend(signal.SIGUSR1); os._exit(7)",
        7,
        "Current thread",
    ),
}


@pytest.mark.parametrize("case", LIBRARY)
def test_a_program_that_uses_npas_gets_its_signals(case: str) -> None:
    code, status, out = LIBRARY[case]
    found = left_by(code)
    assert found[0] == status and found[1].startswith(out) and bool(found[1]) == bool(out), found


def test_a_signal_that_is_repeated_at_the_end_of_a_command_changes_nothing() -> None:
    code = """
class Late:
    def __del__(self): send(2)  # when Python calls no handlers any more
late = Late()
with watching("keep"):
    atexit.register(send, 2)
    with deferred():
        send(2)
send(2)
send(15)
sys.exit(75)
"""
    assert left_by(code) == (75, "")
