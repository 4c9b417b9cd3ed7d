"""Start the workers of `trainer.devices=N` on this machine.

All workers get one config that Hydra has composed. Signals are passed on to the workers, which
finish their step and save. If this process dies, torch's spawn sends them SIGINT.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from npas.config import TrainerConfig
from npas.utils import signals


class WorkersFailed(Exception):
    """A worker failed or was killed by a signal."""

    def __init__(self, rank: int, code: int) -> None:
        self.was_killed = code < 0
        line = f"rank {rank} failed (its traceback is above)"
        if self.was_killed:
            line = f"rank {rank} was killed by {signal.Signals(-code).name}"
            line += ", perhaps out of memory" if -code == signal.SIGKILL else ""
        super().__init__(line)


def launch(trainer: TrainerConfig, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work(*arguments)` in `trainer.devices` processes; return rank 0's result.

    Both must be picklable.
    """
    gpus = torch.cuda.device_count() if trainer.device != "cpu" else 0
    if 0 < gpus < trainer.devices:
        raise ValueError(f"trainer.devices={trainer.devices}, but this machine has {gpus} GPUs")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)
    started: list[Any] = []

    def send(number: int) -> None:
        # A worker that is starting ends silently on SIGTERM.
        number = number if number == signal.SIGKILL else signal.SIGTERM
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = get_context("spawn").SimpleQueue()
    with signals.deferred(forward=send):
        how = (trainer.devices, port, result, work, arguments)
        workers = spawn(_work, how, trainer.devices, join=False)
        started += workers.processes
        if signals.requested():  # while they were started
            send(signal.SIGTERM)
        try:
            while not workers.join():
                pass
        except ProcessRaisedException as error:
            raise WorkersFailed(error.error_index, 1) from None
        except ProcessExitedException as error:
            raise WorkersFailed(error.error_index, error.exit_code) from None
    return result.get()


def _work(
    rank: int, world: int, port: int, result: Any, work: Callable[..., Any], arguments: Any
) -> None:
    ranks = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    os.environ |= {key: str(value) for key, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "OMP_NUM_THREADS" not in os.environ:  # with all cores each, all are slower than one alone
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    try:
        found = work(*arguments)
    except KeyboardInterrupt:  # which torch's spawn would take for success
        sys.exit(128 + signal.SIGINT)
    if rank == 0:
        result.put(found)
