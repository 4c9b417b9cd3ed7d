"""Start the workers of `trainer.devices=N` on this machine, with torch's elastic launcher.

All workers get one config that Hydra has composed. Signals are passed on to the workers, which
finish their step and save; torch's own handling would kill them after 30 seconds.
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
    """A worker failed or was killed by a signal."""

    def __init__(self, rank: int, code: int) -> None:
        super().__init__(_describe(rank, code))
        self.was_killed = code < 0


def launch(trainer: TrainerConfig, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments)` in `trainer.devices` processes; return rank 0's result.

    Both must be picklable. Raises ValueError if there are fewer GPUs, WorkersFailed if a worker
    died or raised an error, whose traceback the worker has printed.
    """
    gpus = torch.cuda.device_count() if trainer.device != "cpu" else 0
    if 0 < gpus < trainer.devices:
        raise ValueError(f"trainer.devices={trainer.devices}, but this machine has {gpus} GPUs")
    # The worker itself reports a failure in fewer lines.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    messenger = _Messenger(trainer.devices)
    with (
        tempfile.TemporaryDirectory() as scratch,
        _surroundings(trainer.devices),
        signals.deferred(forward=messenger.send),
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
    """Give each worker its part of the cores; undo torch's changes to this process on exit."""
    threads, quits = os.environ.get("OMP_NUM_THREADS"), signal.getsignal(signal.SIGQUIT)
    if threads is None:  # if each worker used every core, all would be slower than one alone
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
    """Run a worker's work, then exit if the parent is gone: torch would wait for it forever.

    During the work, the kernel sends SIGINT on the parent's death: the worker saves and ends.
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
    """Pass a signal on to all workers, including those not yet started."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.signaled: set[int] = set()

    def send(self, number: int) -> None:
        if number != signal.SIGKILL:
            number = signal.SIGTERM  # a worker that is starting ends silently on SIGTERM
        self._send_to_started(number)
        if len(self.signaled) < self.workers and number != signal.SIGKILL:
            threading.Thread(target=self._keep_sending, args=(number,), daemon=True).start()

    def _keep_sending(self, number: int) -> None:
        while len(self.signaled) < self.workers:
            time.sleep(POLL_S)
            self._send_to_started(number)

    def _send_to_started(self, number: int) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None and (
                child.pid not in self.signaled or number == signal.SIGKILL
            ):
                self.signaled.add(child.pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)


def _describe(rank: int, code: int) -> str:
    if code >= 0:
        return f"rank {rank} failed (its traceback is above)"
    name = signal.Signals(-code).name
    hint = ", perhaps out of memory" if name == "SIGKILL" else ""
    return f"rank {rank} was killed by {name}{hint}"
