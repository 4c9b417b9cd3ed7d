"""Start the workers of `trainer.devices=N` on this machine, with torch's elastic launcher.

It stands below Hydra: one composed config goes to all. Signals are passed on to the workers, which
finish their step and save, however long that takes; torch's own handling would kill them after 30
seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from npas import _preemption
from npas.config import TrainerConfig


class WorkersFailed(Exception):
    """Tell, in one line, which worker ended the job, and whether a signal had ended it."""

    def __init__(self, rank: int, code: int) -> None:
        super().__init__(_describe(rank, code))
        self.was_killed = code < 0


def launch(trainer: TrainerConfig, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments)` in `trainer.devices` processes; return what the first returned.

    Both must be picklable. ValueError if there are fewer GPUs; WorkersFailed if a worker died or
    raised; its traceback is on stderr by then.
    """
    gpus = torch.cuda.device_count() if trainer.device != "cpu" else 0
    if 0 < gpus < trainer.devices:
        raise ValueError(f"trainer.devices={trainer.devices}, but this machine has {gpus} GPUs")
    # Workers that each use every core are slower together than one alone.
    threads = max(1, len(os.sched_getaffinity(0)) // trainer.devices)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # What it says of a failure, the worker has said in fewer lines.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    start = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=trainer.devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGHUP",
        ),
        work,
    )
    with _preemption.deferred(forward=_tell_workers):
        try:
            return start(*arguments)[0]
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise WorkersFailed(rank, failure.exitcode) from None


def _describe(rank: int, code: int) -> str:
    if code >= 0:
        return f"rank {rank} failed (its traceback is above)"
    name = signal.Signals(-code).name
    hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"rank {rank} was killed by {name}{hint}"


def _tell_workers(number: int) -> None:
    if number != signal.SIGKILL:
        number = signal.SIGTERM  # whichever it was: one that still starts ends without a word
    for child in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            if child.pid is not None:
                os.kill(child.pid, number)
