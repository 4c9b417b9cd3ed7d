"""Read this process's ranks from torchrun's or srun's environment variables.

Imports no torch: a command checks whether it may print before it loads anything.
"""

import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
FIRST_PORT, PORTS = 20000, 20000  # for the rendezvous of the ranks that srun started


class Refused(ValueError):
    """A user's error that is raised in all processes of a job."""


@dataclass(frozen=True)
class Place:
    """A process's ranks and world sizes."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on its machine
    local_world: int = 1
    by_slurm: bool = False  # Slurm may show each process only its own GPU

    @property
    def nodes(self) -> int:
        return max(1, self.world // self.local_world)


def place(environ: MutableMapping[str, str] | None = None) -> Place:
    """Return this process's ranks; without a launcher, those of a single process."""
    environ = os.environ if environ is None else environ
    if "WORLD_SIZE" in environ:
        names = TORCHRUN
    elif _number("SLURM_STEP_NUM_TASKS", environ, "1") > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
    else:
        return Place()
    if environ[names[1]] == "1":
        return Place()
    missing = [name for name in names if name not in environ]
    if missing:
        raise ValueError(
            f"{names[1]}={environ[names[1]]} is set but {missing[0]} is not: unset it, or start"
            " with torchrun, srun or trainer.devices=N"
        )
    rank, world, local_rank, last = (_number(name, environ) for name in names)
    if names is TORCHRUN:
        return Place(rank, world, local_rank, last)
    return Place(rank, world, local_rank, max(1, world // last), by_slurm=True)


def is_main_process() -> bool:
    """Return whether this process prints: rank 0, or one whose rank is unknown."""
    try:
        return place().rank == 0
    except ValueError:
        return True


def set_torchrun_variables(environ: MutableMapping[str, str]) -> None:
    """Set torchrun's variables, which torch reads, if srun started the processes."""
    if "WORLD_SIZE" in environ or (here := place(environ)).world == 1:
        return
    job, step = (_number(name, environ, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    # The first host of the list: `gpu07` of `gpu[07-09,12],login`.
    host = re.match(r"([^\[,]+)(?:\[(\w+))?", environ.get("SLURM_STEP_NODELIST", ""))
    environ.setdefault("MASTER_ADDR", "".join(host.groups("")) if host else "localhost")
    environ.setdefault("MASTER_PORT", str(FIRST_PORT + (31 * job + step) % PORTS))
    ranks = (here.rank, here.world, here.local_rank, here.local_world)
    environ.update(zip(TORCHRUN, map(str, ranks), strict=True))


def _number(name: str, environ: MutableMapping[str, str], default: str = "") -> int:
    value = environ.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}={value} is not a number: unset it or fix the launcher") from None
