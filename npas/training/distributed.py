"""Training in several processes: ranks, collectives and agreement on when to stop.

All of it does nothing in a single process. NCCL carries GPU tensors, gloo CPU tensors and plain
data. Votes on whether to stop have a process group of their own, so they wait for nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn
from torch.nn.parallel import DistributedDataParallel

from npas.config import Config, TrainerConfig
from npas.utils import processes, signals

T = TypeVar("T")
log = logging.getLogger(__name__)

# For a process that hangs: one that dies is noticed at once. Reading data may take long.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Process:
    """This process's rank, the world size and its device."""

    rank: int
    world: int
    device: torch.device
    nodes: int = 1
    votes: Any = None  # the process group of the votes; None in a single process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def from_leader(self, value: T) -> T:
        """Return rank 0's value, plain data, in every process."""
        if self.world == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, device=torch.device("cpu"))
        return holder[0]

    def gather(self, value: T) -> list[T]:
        """Return every process's value, plain data or CPU tensors, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Turn a ValueError raised in one process into Refused in all processes.

        Raises Preempted in all of them if a signal asked one to stop.
        """
        mistake = None
        try:
            yield
        except ValueError as error:
            mistake = error
        found = self.gather((str(mistake or ""), signals.requested()))
        first = next((text for text, _ in found if text), None)
        if first is not None:
            raise processes.Refused(first) from mistake
        if self.world > 1 and any(stop for _, stop in found):
            raise signals.Preempted

    def total(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Sum a tensor over all processes in place, or reduce it with `op`."""
        if self.world > 1:
            dist.all_reduce(tensor, op)
            increment_version(tensor)
        return tensor

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values into the tensors of all processes."""
        for tensor in tensors if self.world > 1 else ():
            dist.broadcast(tensor.detach(), 0)
            increment_version(tensor)  # collectives do not; cached weights compare versions

    def broadcast_all(self, model: nn.Module) -> None:
        self.broadcast([*model.parameters(), *model.buffers()])


class StopVote:
    """Stop all processes after the same step when a signal or the clock asks any of them to.

    A vote is cast after each step and counted after the next, so no process waits for it.
    `elapsed_s` is the time that all agree on, `clock` returns this process's own.
    """

    def __init__(self, process: Process, elapsed_s: float, clock: Callable[[], float]) -> None:
        self.process = process
        self.elapsed_s = elapsed_s
        self.clock = clock
        self.cast: tuple[Any, Tensor] | None = None

    def is_over(self, most_s: float | None) -> bool:
        """Return whether the agreed time has reached `most_s`; None means no limit."""
        return most_s is not None and self.elapsed_s >= most_s

    def should_stop(self) -> bool:
        """Cast this step's vote and return the result of the last one."""
        stop, now = signals.requested(), self.clock()
        if self.process.world == 1:
            self.elapsed_s = now
            return stop
        result = self._count()
        ballot = torch.tensor([float(stop), now], dtype=torch.float64)
        group, greatest = self.process.votes, dist.ReduceOp.MAX
        self.cast = dist.all_reduce(ballot, greatest, group=group, async_op=True), ballot
        return result

    def __enter__(self) -> StopVote:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:  # after an error the others may never cast theirs
            self._count()

    def _count(self) -> bool:
        """Wait for the pending vote, if any, and return whether to stop."""
        if self.cast is None:
            return False
        work, ballot = self.cast
        work.wait()
        self.cast = None
        stop, self.elapsed_s = ballot.tolist()
        return bool(stop)


_joined: Process | None = None


def this_process(trainer: TrainerConfig) -> Process:
    """Return this process's ranks and device. Raises ValueError if there is no such device."""
    if _joined is not None:
        return _joined
    return Process(0, 1, _device(trainer, processes.Place()))


@contextlib.contextmanager
def joined(trainer: TrainerConfig) -> Iterator[Process]:
    """Join the process group that torchrun, srun or `launch` started, if any."""
    global _joined
    here = processes.place()
    if trainer.devices not in (1, here.local_world, here.world):
        raise ValueError(
            f"trainer.devices={trainer.devices}, but {here.local_world} processes were started on"
            " this machine: leave trainer.devices out, it is for starting without torchrun or srun"
        )
    if here.world == 1:
        yield this_process(trainer)
        return
    processes.set_torchrun_variables(os.environ)
    on_gpus = trainer.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    votes = dist.new_group(backend="gloo", timeout=TIMEOUT)
    process = Process(here.rank, here.world, torch.device("cpu"), here.nodes, votes)
    with process.together():
        device = _device(trainer, here)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _joined = replace(process, device=device)
    try:
        yield _joined
    finally:
        _joined = None
    # Not after an error: the others may be gone, and this process's exit tells those that are not.
    dist.destroy_process_group()


def wrap(model: nn.Module, process: Process, config: Config) -> nn.Module:
    """Wrap the network in DDP, which averages gradients over the processes.

    A deterministic run of more than two processes sets `find_unused_parameters`, which fixes the
    gradient buckets. Torch would otherwise rearrange them after the first step, and a resumed run,
    whose first step is another one, would sum gradients in another order.
    """
    if process.world == 1:
        if config.trainer.gradient_dtype != "fp32":
            log.warning("trainer.gradient_dtype ignored: one process sends no gradients")
        return model
    keeps_buckets = config.deterministic and process.world > 2
    network = DistributedDataParallel(model, find_unused_parameters=keeps_buckets)
    if config.trainer.gradient_dtype != "fp32":
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        hook = f"{config.trainer.gradient_dtype}_compress_hook"
        network.register_comm_hook(None, getattr(default_hooks, hook))
    return network


def check_all_used(model: nn.Module) -> None:
    """Raise Refused if a parameter got no gradient in backward: DDP waits for each of them."""
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise processes.Refused(
            f"{len(unused)} parameters do not affect the loss ({unused[0]}, ...): several"
            " processes cannot train them; remove them or freeze them"
        )


def _device(trainer: TrainerConfig, here: processes.Place) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if trainer.device == "cuda" and not has_gpu:
        raise ValueError("trainer.device=cuda, but torch finds no GPU: set trainer.device=auto")
    if not has_gpu or trainer.device == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    local_rank = 0 if here.by_slurm and count == 1 else here.local_rank
    if local_rank >= count:
        raise ValueError(
            f"more processes than the {count} GPUs of this machine: start {count}, or set"
            " trainer.device=cpu"
        )
    return torch.device("cuda", local_rank)


# --- the workers of trainer.devices=N


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

    Both must be picklable. Signals are passed on to the workers, which finish their step and save.
    If this process dies, torch's spawn sends them SIGINT.
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
