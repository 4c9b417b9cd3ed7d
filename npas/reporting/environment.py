"""What a run ran on: versions, git state, hardware. Never fails; what cannot be known is None."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
PACKAGES = (
    "npas",
    "torch",
    "torchvision",
    "numpy",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "scikit-learn",
)


@dataclass(frozen=True)
class Git:
    """Name the commit that ran; both None where npas does not run from a git checkout."""

    commit: str | None
    dirty: bool | None  # tracked files outside results/ differ from the commit


@dataclass(frozen=True)
class Hardware:
    """Name the machine's parts, but not the machine."""

    platform: str
    cpu: str
    cores: int  # that this process may use
    threads: int  # that torch uses
    gpu: str | None
    gpus: int


def environment() -> dict[str, Any]:
    """Gather `versions`, `git` and `hardware`, to be used as `Result(..., **environment())`."""
    return {"versions": versions(), "git": git_state(), "hardware": hardware()}


def versions() -> dict[str, str]:
    """Map each installed package that can change a result to its version."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(package: Path = PACKAGE_FOLDER) -> Git:
    """Read the commit of the checkout that holds `package`, if it is one."""
    top = _git(package, "rev-parse", "--show-toplevel")
    # A package installed in some other project's folder must not report that project's commit.
    if top is None or Path(top).resolve() != package.parent:
        return Git(None, None)
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    # A result that has just been added does not make the code that made it a different one.
    changes = _git(
        package.parent, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"
    )
    return Git(commit, None if commit is None or changes is None else bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def hardware() -> Hardware:
    """Describe this process's processor and GPUs."""
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
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"
