"""Start the workers of `trainer.devices=N` on this machine, with torch's elastic launcher.

It stands below Hydra: one composed config goes to all. Signals are passed on to the workers, which
finish their step and save, however long that takes; torch's own handling would kill them after 30
seconds.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from npas.config import TrainerConfig
from npas.utils import signals

POLL_S = 0.2


class WorkersFailed(Exception):
    """One line on which worker ended the job, and whether a signal had ended it."""

    def __init__(self, rank: int, code: int) -> None:
        super().__init__(_describe(rank, code))
        self.was_killed = code < 0


def launch(trainer: TrainerConfig, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments)` in `trainer.devices` processes; return what the first returned.

    Both must be picklable. ValueError if there are fewer GPUs; WorkersFailed if a worker died or
    raised, of which it has printed a traceback by then.
    """
    gpus = torch.cuda.device_count() if trainer.device != "cpu" else 0
    if 0 < gpus < trainer.devices:
        raise ValueError(f"trainer.devices={trainer.devices}, but this machine has {gpus} GPUs")
    # What it says of a failure, the worker has said in fewer lines.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    messenger = _Messenger(trainer.devices)
    with (
        tempfile.TemporaryDirectory() as scratch,
        _surroundings(trainer.devices),
        signals.deferred(forward=messenger.tell),
    ):
        start = elastic_launch(
            LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=trainer.devices,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",
                max_restarts=0,
                signals_to_handle="SIGQUIT",  # none of ours
            ),
            _work_beside_parent,
        )
        try:
            return start(work, os.getpid(), arguments)[0]
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise WorkersFailed(rank, failure.exitcode) from None


@contextlib.contextmanager
def _surroundings(workers: int) -> Iterator[None]:
    """Give each worker its part of the cores, and put back what torch changes in this process."""
    threads, quits = os.environ.get("OMP_NUM_THREADS"), signal.getsignal(signal.SIGQUIT)
    if threads is None:  # workers that each use every core are slower together than one alone
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    try:
        yield
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGQUIT, quits or signal.SIG_DFL)


def _work_beside_parent(work: Callable[..., Any], parent: int, arguments: tuple[Any, ...]) -> Any:
    """Do a worker's work. One whose parent has been killed would wait for it for ever at its end.

    (While it works, the kernel tells it of the parent's death by SIGINT: it saves, and ends.)
    """
    try:
        return work(*arguments)
    finally:
        threading.Thread(target=_leave_after, args=(parent,), daemon=True).start()


def _leave_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


class _Messenger:
    """Passes a signal on to all workers, also to those about to be started."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.told: set[int] = set()

    def tell(self, number: int) -> None:
        if number != signal.SIGKILL:
            number = signal.SIGTERM  # whichever it was: one that still starts ends without a word
        self._tell_those_there(number)
        if len(self.told) < self.workers and number != signal.SIGKILL:
            threading.Thread(target=self._keep_telling, args=(number,), daemon=True).start()

    def _keep_telling(self, number: int) -> None:
        while len(self.told) < self.workers:
            time.sleep(POLL_S)
            self._tell_those_there(number)

    def _tell_those_there(self, number: int) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None and (child.pid not in self.told or number == signal.SIGKILL):
                self.told.add(child.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)


def _describe(rank: int, code: int) -> str:
    if code >= 0:
        return f"rank {rank} failed (its traceback is above)"
    name = signal.Signals(-code).name
    hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"rank {rank} was killed by {name}{hint}"
