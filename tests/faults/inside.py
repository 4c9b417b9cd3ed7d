"""What a forked process runs: the counterpart of `processes.py`."""

import os
import signal
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path


def train(overrides, fault=None):
    """Run npas-train with this fault (see `make`)."""
    from npas.cli import train

    make(fault or {})
    sys.argv = ["npas-train", *overrides]
    return train.main()


def make(fault):
    """Cause a fault after a number of optimizer steps.

    step: after which optimizer step of this process; signals: to send to itself, or to its group
    where `group` is true; limit: bytes to which a file may grow from then on, as on a full disk;
    raises: an error's message; sleep: seconds, after making the file `asleep`. At once:
    norm: "group" has no network learn statistics of a batch.
    """
    import torch

    if fault.get("norm") == "group":
        torch.nn.BatchNorm2d = lambda channels: torch.nn.GroupNorm(1, channels)  # type: ignore
    if "step" in fault:
        after_step(fault["step"], lambda: happen(fault))


def after_step(step, action, module=None):
    """Act after this many more optimizer steps; `module` is torch.optim.optimizer."""
    if module is None:
        from torch.optim import optimizer as module
    steps = count(1)

    def hook(*anything):
        if next(steps) == step:
            action()

    module.register_optimizer_step_post_hook(hook)


def happen(fault):
    import resource

    if "limit" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["limit"], resource.RLIM_INFINITY))
    for number in fault.get("signals", ()):
        if fault.get("group"):
            os.killpg(os.getpgrp(), number)
        else:
            os.kill(os.getpid(), number)
    if "raises" in fault:
        raise RuntimeError(fault["raises"])
    if "sleep" in fault:
        Path("asleep").touch()
        time.sleep(fault["sleep"])


def stop_after_each(overrides, steps, ports=None):
    """Train once for each of `steps`: stopped after it, then to the end, below stopped-<step>.

    Without the command line around it, which takes longer to read than all steps take. In one of
    several ranks the signal reaches the last, and they meet at the next of `ports` each time.
    """
    import torch

    from npas.cli import train
    from npas.reporting.compose import compose

    composed = train.as_started(compose(*overrides))
    is_last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    for step in steps:
        config = replace(composed, run_root=f"stopped-{step}")
        for status in ("preempted", "done"):
            if ports:
                os.environ["MASTER_PORT"] = str(ports.pop())
            if status == "preempted" and is_last:
                after_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            torch.manual_seed(step)  # whatever the generator is at, the run has its own state
            job = train.run(config)
            if job.status != status:
                print(f"stopped after step {step}: {job}", file=sys.stderr)
                return 1
    return 0


def execute(program):
    """Become another program; "python" is the one that runs this."""
    if program[0] == "python":
        program = [sys.executable, *program[1:]]
    os.execv(program[0], program)


def write_checkpoints(folder, report, first, times):
    """Write checkpoint after checkpoint, each `times` over; report each that is written."""
    import torch

    from npas.training.checkpoint import Checkpoints

    store = Checkpoints(Path(folder))
    with open(report, "a") as file:
        for step in count(first):
            weights = {f"w{n}": torch.full((20_000,), float(step)) for n in range(5)}
            groups = {"model": weights, "optimizer": weights, "rng": {"cpu": torch.tensor([step])}}
            for _ in range(times):
                store.save(step, {"note": f"step {step}"}, groups, best=step - step % 10)
                file.write(f"{step}\n")
                file.flush()
