"""The environment of a run: versions, git state and hardware. Never fails; unknown is None."""

import contextlib
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from npas.utils.git import git_state

PACKAGES = (
    "npas", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "safetensors",
    "scikit-learn",
)  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """The hardware of a machine, without its name."""

    platform: str
    cpu: str
    cores: int  # available to this process
    threads: int  # used by torch
    gpu: str | None
    gpus: int


def environment() -> dict[str, Any]:
    """Return `versions`, `git` and `hardware`, for `Result(..., **environment())`."""
    return {"versions": versions(), "git": git_state(), "hardware": hardware()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of installed packages that can affect a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> Hardware:
    """Describe this process's CPU and GPUs."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Hardware(
        platform=platform.platform(),
        cpu=_cpu_name(),
        cores=cores or 1,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if gpus else None,
        gpus=gpus,
    )


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
