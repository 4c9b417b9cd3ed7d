"""Make batches in worker processes: the same batches, in the same order.

Workers are forked for each epoch: they share the data without a copy and start in milliseconds.
Forking after torch and gloo have started threads is safe here: a worker computes on one thread,
without other ranks and GPUs, and exits without cleanup. Outside Linux, workers start by the
platform's default method.

Workers ignore the signals that stop a run. Each watches a pipe whose other end the main process
holds, and exits when that is closed or the main process ends.
"""

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
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from npas.utils.signals import SIGNALS

T = TypeVar("T")

START_METHOD = "fork" if sys.platform == "linux" else None  # None: the platform's default
GRACE_S = 1.0  # for a worker to finish its batch after the iteration is abandoned


def iterate(make: Callable[[range], Iterator[T]], steps: range, workers: int) -> Iterator[T]:
    """Iterate over the items that `make` yields for these steps, made by up to `workers` processes.

    0 workers: made in this process. A worker's error is raised here, at its item's turn.
    """
    if not workers or not steps:
        return make(steps)
    return _deliver(_Work(make, steps), min(workers, len(steps)))


class _Work(IterableDataset):
    """Yields every W-th item in each of W workers, and a ValueError, to which torch would add."""

    def __init__(self, make: Callable[[range], Iterator[Any]], steps: range) -> None:
        self.make, self.steps = make, steps

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        try:
            yield from self.make(self.steps[worker.id :: worker.num_workers])
        except ValueError as error:
            yield ValueError(str(error)), traceback.format_exc()


def _deliver(work: _Work, workers: int) -> Iterator[Any]:
    watched, held = multiprocessing.Pipe(duplex=False)
    # At exit, Python joins remaining workers, and its SIGTERM would not end them.
    atexit.register(held.close)
    loading: Any = None
    try:
        how: Any = {"batch_size": None, "num_workers": workers, "collate_fn": _as_it_is}
        how |= {"worker_init_fn": partial(_start, watched, held)}
        how |= {"multiprocessing_context": START_METHOD}
        with _quietly():  # with a generator, so that torch's default one is not advanced
            loading = iter(DataLoader(work, generator=torch.Generator(), **how))
        watched.close()
        for item in loading:
            if isinstance(item, tuple) and isinstance(item[0], ValueError):
                raise item[0] from RuntimeError(item[1])
            yield item
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # died during a transfer
        raise RuntimeError("a DataLoader worker is gone: it was killed, or crashed") from error
    finally:
        atexit.unregister(held.close)
        held.close()
        with contextlib.suppress(RuntimeError, AttributeError):  # of a killed worker; not started
            loading._shutdown_workers()  # now, since a traceback may delay its __del__


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Start processes with signals blocked until they ignore them, and without warnings.

    The warnings are torch's about many workers and Python's (3.12) about forks beside threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(watched: Connection, held: Connection, worker: int) -> None:
    """Set up a worker: watch the pipe, ignore the signals."""
    held.close()
    threading.Thread(target=_end_with_main, args=(watched,), daemon=True).start()
    gc.freeze()  # do not run finalizers of the main process's garbage here
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_with_main(watched: Connection) -> None:
    """Exit when the pipe closes: at once if the main process has ended, else after `GRACE_S`.

    Torch lets a worker end between two batches. Exiting earlier could leave a lock held that the
    main process waits for.
    """
    main = os.getppid()
    watched.poll(None)
    until = time.monotonic() + GRACE_S
    while os.getppid() == main and time.monotonic() < until:
        time.sleep(GRACE_S / 100)
    os._exit(0)


def _as_it_is(item: Any) -> Any:
    return item
