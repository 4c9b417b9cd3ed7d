"""Stop on a signal: at once, or in a training after the current step.

    with watching():              # the first of SIGNALS raises Preempted, ...
        with deferred():          # ... but not in this block, which asks instead:
            if requested(): ...   # save, then leave

A second signal ends the process at once. At the end, earlier handlers are restored and called: a
scheduler's handler may requeue the job. Imports no torch.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Literal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
EXIT_CODE = 75  # sysexits.h: a temporary failure, try again
SAME_SIGNAL_S = 1.0  # a terminal and a launcher both pass a signal on: treat two as one


class Preempted(BaseException):
    """A signal asked to stop outside `deferred`."""


class _Watch:
    def __init__(self) -> None:
        self.received: list[int] = []
        self.at = 0.0
        self.deferring = 0
        self.forward: Callable[[int], None] | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        now, is_first = time.monotonic(), not self.received
        if not is_first and now - self.at > SAME_SIGNAL_S:
            if self.forward is not None:
                self.forward(signal.SIGKILL)
            os._exit(128 + number)
        self.received.append(number)
        if is_first:
            self.at = now
            if self.forward is not None:
                self.forward(number)
            if not self.deferring:
                raise Preempted


_watch: _Watch | None = None


@contextlib.contextmanager
def watching(at_end: Literal["restore", "deliver", "keep"] = "restore") -> Iterator[None]:
    """Catch the signals; do nothing within another `watching` or outside the main thread.

    At the end the earlier handlers are restored, and those that are functions are called with the
    signals received. With "deliver" the default action follows too, as a program that calls npas
    expects of its own SIGTERM. With "keep", for a process that then exits with a code of its own, a
    repeated signal is still ignored after the end.
    """
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = watch = _Watch()
    if at_end == "keep":
        atexit.register(_ignore_repeated, watch)  # registered first, so called last
    before, report = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    # Raised within a finalizer, Preempted is lost: the training stops at its first step instead.
    sys.unraisablehook = lambda lost: lost.exc_type is Preempted or report(lost)
    for number, handler in [*before.items()]:
        # None: not installed from Python, so it cannot be restored. nohup ignores SIGHUP.
        if handler is None or (number == signal.SIGHUP and handler == signal.SIG_IGN):
            del before[number]
    try:
        for number in before:
            signal.signal(number, watch.receive)
        yield
    finally:
        watch.deferring += 1  # later signals raise nothing
        _watch = None
        sys.unraisablehook = report
        if at_end != "keep" or not watch.received:
            for number, handler in before.items():
                signal.signal(number, handler)
        for received in dict.fromkeys(watch.received):
            handler = before[signal.Signals(received)]
            if callable(handler) and handler is not signal.default_int_handler:
                handler(received, None)
            elif at_end == "deliver" and handler != signal.SIG_IGN:
                signal.raise_signal(received)


def _ignore_repeated(watch: _Watch) -> None:
    """Ignore signals while Python exits and no longer calls handlers."""
    if watch.received:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred(forward: Callable[[int], None] | None = None) -> Iterator[None]:
    """Defer signals until `requested` is called; `forward` passes them on to other processes."""
    if _watch is None:
        yield
        return
    watch, before = _watch, _watch.forward
    watch.deferring += 1
    watch.forward = forward or before
    try:
        yield
    finally:
        watch.deferring -= 1
        watch.forward = before


def requested() -> bool:
    """Return whether a signal has asked to stop."""
    return _watch is not None and bool(_watch.received)
