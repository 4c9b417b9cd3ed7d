"""Make batches in other processes: the same batches, in the same order.

The workers are forked: they then hold the data without a copy and start in milliseconds, as they do
again for every epoch, where a fresh interpreter would import torch first. That is safe after torch
has computed and gloo has connected, though a fork takes none of their threads along: a worker
computes on one thread, talks to no other rank, and leaves without cleaning up what it inherited.
A GPU cannot be used after a fork. Outside Linux, where the system's own libraries do not outlive a
fork, workers are started as Python does there.

A worker's stop is the main process's to decide. It ignores the signals that ask a run to stop, from
its first moment on; and since nothing but SIGKILL ends it then, it watches a pipe whose other end
the main process holds: when that is closed, or the process is gone, the worker soon is gone too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from npas.utils.signals import SIGNALS

T = TypeVar("T")

IGNORED = SIGNALS  # that ask a run to stop
START_METHOD = "fork" if sys.platform == "linux" else None  # None: the platform's usual one
GRACE_S = 1.0  # for a worker to finish what it is making when the iteration is given up


def iterate(make: Callable[[range], Iterator[T]], steps: range, workers: int) -> Iterator[T]:
    """Iterate over what `make` makes of these steps, one item a step, in up to `workers` processes.

    0 workers: in this one. What a worker raises is raised here, in the turn of its item.
    """
    if not workers or not steps:
        return make(steps)
    return _deliver(_Work(make, steps), min(workers, len(steps)))


class _Refusal(NamedTuple):
    """A ValueError for the main process: torch would put a traceback into its message."""

    message: str
    where: str


class _Work(IterableDataset):
    """Make every W-th item, where W workers turn by turn make them all."""

    def __init__(self, make: Callable[[range], Iterator[Any]], steps: range) -> None:
        self.make = make
        self.steps = steps

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        try:
            yield from self.make(self.steps[worker.id :: worker.num_workers])
        except ValueError as error:
            yield _Refusal(str(error), traceback.format_exc())


def _deliver(work: _Work, workers: int) -> Iterator[Any]:
    watched, held = multiprocessing.Pipe(duplex=False)
    # Python waits at its end for workers that are left, and their SIGTERM would not reach them.
    atexit.register(held.close)
    try:
        with _quietly():
            loader = DataLoader(
                work,
                batch_size=None,
                num_workers=workers,
                collate_fn=_as_it_is,
                worker_init_fn=partial(_start, watched, held),
                multiprocessing_context=START_METHOD,
                generator=torch.Generator(),  # torch's own goes on as if there were no workers
            )
            loading: Any = iter(loader)
        watched.close()
        try:
            for item in loading:
                if isinstance(item, _Refusal):
                    raise ValueError(item.message) from RuntimeError(item.where)
                yield item
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # while it handed one over
            raise RuntimeError("a DataLoader worker is gone: it was killed, or crashed") from error
        finally:
            held.close()
            with contextlib.suppress(RuntimeError):  # of one that was killed: too late to matter
                loading._shutdown_workers()  # its __del__ may come late: a traceback holds on to it
    finally:
        atexit.unregister(held.close)
        held.close()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Start processes with the signals held back until they ignore them, and without warnings.

    How many workers there are is the user's to say, and Python from 3.12 on warns of every fork
    beside other threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(watched: Connection, held: Connection, worker: int) -> None:
    """Make a worker heed the pipe and not the signals."""
    held.close()
    threading.Thread(target=_end_with_main, args=(watched,), daemon=True).start()
    gc.freeze()  # what the main process left for its collector is not to be finished here as well
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


def _end_with_main(watched: Connection) -> None:
    """End this process at once if the main process has ended, else if it does not end by itself.

    Torch asks a worker to end between two batches; to cut it short could leave a lock held on which
    the main process waits.
    """
    main = os.getppid()
    watched.poll(None)
    until = time.monotonic() + GRACE_S
    while os.getppid() == main and time.monotonic() < until:
        time.sleep(GRACE_S / 100)
    os._exit(0)


def _as_it_is(item: Any) -> Any:
    return item
