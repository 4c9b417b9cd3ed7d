"""Read this process's ranks from torchrun's or srun's environment variables.

Imports no torch: a command checks whether it may print before it loads anything.
"""

import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass

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
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
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
    is_torchrun = names[0] == "RANK"
    local_world = last if is_torchrun else max(1, world // last)
    return Place(rank, world, local_rank, local_world, by_slurm=not is_torchrun)


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
    environ.setdefault("MASTER_ADDR", first_host(environ.get("SLURM_STEP_NODELIST", "localhost")))
    environ.setdefault("MASTER_PORT", str(FIRST_PORT + (31 * job + step) % PORTS))
    environ["RANK"] = str(here.rank)
    environ["WORLD_SIZE"] = str(here.world)
    environ["LOCAL_RANK"] = str(here.local_rank)
    environ["LOCAL_WORLD_SIZE"] = str(here.local_world)


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: `gpu07` for `gpu[07-09,12],login`."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    return match[1] + (match[2] or "") if match else "localhost"


def _number(name: str, environ: MutableMapping[str, str], default: str = "") -> int:
    value = environ.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}={value} is not a number: unset it or fix the launcher") from None
