"""Stop when asked to by a signal: at once where nothing is lost, after the step in a training.

    with watching():              # the first of SIGNALS raises Preempted, ...
        with deferred():          # ... but not in here, where one asks instead:
            if requested(): ...   # save, then leave

A second signal ends the process at once. Handlers that were there before are called at the end:
a scheduler's own may requeue the job. Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
EXIT_CODE = 75  # sysexits.h: a temporary failure, try again
# A terminal and a launcher both pass a signal on: two within this time are one.
SAME_SIGNAL_S = 1.0


class Preempted(BaseException):
    """Tell that a signal asked to stop where there was nothing to save."""


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
def watching() -> Iterator[None]:
    """Catch the signals; within another `watching`, or beside the main thread, do nothing."""
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = watch = _Watch()
    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, watch.receive)
            if number == signal.SIGHUP and before[number] == signal.SIG_IGN:  # by nohup
                signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        _watch = None
        for caught, handler in before.items():
            signal.signal(caught, signal.SIG_DFL if handler is None else handler)
    for received in dict.fromkeys(watch.received):
        handler = before[received]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(received, None)


@contextlib.contextmanager
def deferred(forward: Callable[[int], None] | None = None) -> Iterator[None]:
    """Let a signal wait until it is asked for; `forward` hands it on to other processes."""
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
    """Tell whether a signal has asked to stop."""
    return _watch is not None and bool(_watch.received)
