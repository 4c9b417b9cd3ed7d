"""A signal stops at once or after the step where deferred; a second one ends the process."""

import os
import signal
import subprocess
import sys

import pytest

from npas.utils.signals import EXIT_CODE, SIGNALS, Preempted, deferred, requested, watching


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_stay():
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be under nohup
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_or_waits_where_it_is_deferred(number):
    with watching():
        with pytest.raises(Preempted):
            send(number)
        assert requested()
    told = []
    with watching():
        # A watch within another is that one; what is passed on goes to the outer's processes.
        with watching(), deferred(forward=told.append), deferred():
            assert not requested()
            send(number)
            assert requested()
            send(signal.SIGINT)  # what a terminal and a launcher both deliver counts once
        assert requested() and told == [number]
    with deferred():
        assert not requested()


def test_the_handler_that_was_there_is_called_at_the_end():
    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with watching():
            with deferred():
                send(signal.SIGHUP)
                assert not requested()
                send(signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR2)  # as a scheduler does
            assert called == []
        assert called == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGHUP, hangup)


START = """
import atexit, os, signal, sys, time
from npas.utils import signals
from npas.utils.signals import deferred, watching
send = lambda number: os.kill(os.getpid(), number)
"""
# What comes while a program uses npas, and after, as if npas had not been there: its code, its exit
# code, and what it prints.
PROGRAMS = {
    "after a use": ("with watching(), watching('deliver'): pass\nsend(15)", -15, ""),
    "while it works": ("with watching('deliver'), deferred(): send(15)\nprint('on')", -15, ""),
    "Ctrl-C": (
        "signal.signal(2, signal.default_int_handler)\n"  # in a shell's background it is ignored
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
    "a second signal ends it at once": (
        "signals.SAME_SIGNAL_S = 0.0\n"
        "with watching(), deferred(): send(15); time.sleep(0.01); send(2); print('still here')",
        128 + signal.SIGINT,
        "",
    ),
    "repeated at the end of a command": (
        "class Late:\n def __del__(self): send(2)  # when Python calls no handlers any more\n"
        "late = Late()\n"
        "with watching('keep'):\n atexit.register(send, 2)\n with deferred(): send(2)\n"
        "send(2); send(15); sys.exit(signals.EXIT_CODE)",
        EXIT_CODE,
        "",
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_gets_its_signals(case):
    code, status, out = PROGRAMS[case]
    command = [sys.executable, "-c", START + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == status and done.stdout.startswith(out), done
    assert bool(done.stdout) == bool(out)


def test_a_signal_within_a_finalizer_is_kept_without_a_traceback(monkeypatch):
    class Owner:
        def __del__(self):
            self.end()

    def fail():
        raise KeyError("another error is reported")

    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: lost.append(found.exc_type))
    with watching():
        for end in (fail, lambda: send(signal.SIGTERM)):
            owner = Owner()
            owner.end = end
            del owner
        assert requested()
    assert lost == [KeyError]
