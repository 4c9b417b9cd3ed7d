"""Run the jobs of a sweep (`-m`): check all, then run each, even if others fail.

Other launchers than Hydra's own, as submitit, compose the checked jobs again.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from npas.cli import app
from npas.cli.app import Command, Job
from npas.cli.arguments import as_written
from npas.utils import processes
from npas.utils.progress import Bar

T = TypeVar("T")
SEARCHES = "searches run by W&B (docs/running.md)"


def run(command: Command[T], options: argparse.Namespace) -> list[Job]:
    """Run the jobs of a sweep and return how each ended. Raises ValueError for invalid ones."""
    from hydra.types import RunMode

    if processes.place().world > 1:
        raise ValueError(
            "a sweep (-m) starts its jobs itself: run it without torchrun or srun, and for several"
            " processes a job set trainer.devices=N"
        )
    sweep = _Sweep(command, tuple(options.overrides))
    primary: dict[str, Any] = {"config_name": options.config_name or command.primary}
    primary["overrides"] = [*options.overrides, "hydra.mode=MULTIRUN"]
    with app.hydra(command.name) as hydra:
        composed = hydra.compose_config(**primary, run_mode=RunMode.MULTIRUN)
        if not composed.hydra.sweeper._target_.endswith(".BasicSweeper"):
            raise ValueError(f"hydra/sweeper: list the values of a sweep; {SEARCHES}")
        jobs = sweep.check(hydra.config_loader, composed)
        if composed.hydra.launcher._target_.endswith(".BasicLauncher"):
            for number, (overrides, checked) in enumerate(jobs):
                sweep.run(number, overrides, lambda checked=checked: checked)  # type: ignore[misc]
        else:
            try:
                hydra.multirun(
                    **primary, task_function=sweep.launched, with_log_configuration=False
                )
            except RuntimeError as error:  # of a launcher, e.g. off its cluster: jobs catch theirs
                raise ValueError(f"hydra/launcher: {error}") from error
            except app.RunFailed as failure:
                sweep.jobs += [] if failure.job in sweep.jobs else [failure.job]
    if command.close_sweep is not None:
        command.close_sweep(sweep.jobs)
    return sweep.jobs


class _Sweep(Generic[T]):
    def __init__(self, command: Command[T], arguments: Sequence[str]) -> None:
        self.command = command
        self.arguments = arguments
        self.jobs: list[Job] = []
        self.total = 0
        self.process = os.getpid()

    def check(self, loader: Any, composed: Any) -> list[tuple[list[str], T]]:
        """Compose and check the jobs of Hydra's own sweeper; return their overrides and configs."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from omegaconf import open_dict

        params = [f"{key}={value}" for key, value in (composed.hydra.sweeper.params or {}).items()]
        parsed = OverridesParser.create(loader).parse_overrides([*params, *self.arguments])
        jobs = [list(job) for job in itertools.product(*map(_choices, parsed))]
        if not jobs:
            raise ValueError("the sweep has no jobs: one of its lists is empty")
        self.total, checked = len(jobs), []
        with Bar("checking jobs", self.total, lines=True) as bar:
            for number, overrides in enumerate(jobs):
                config = loader.load_sweep_config(composed, overrides)
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = number
                    HydraConfig.instance().set_config(config)  # values may refer to it
                    del config["hydra"]
                checked.append((overrides, self.command.check(app.plain(config))))
                bar.advance()
        return checked

    def launched(self, config: Any) -> None:
        """Check and run a job that Hydra has composed."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        check = self.command.check
        job = self.run(hydra.job.num, hydra.overrides.task, lambda: check(app.plain(config)))
        if not job.fine and os.getpid() != self.process:
            # In a process of another launcher, the error reports the failure to the cluster.
            raise app.RunFailed(job)

    def spelled(self, overrides: Sequence[str]) -> str:
        """Return a job's arguments that differ from those of others."""
        own = [override for override in overrides if override not in self.arguments]
        return " ".join(override.lstrip("+") for override in own or overrides)

    def run(self, number: int, overrides: Sequence[str], prepare: Callable[[], T]) -> Job:
        """Announce and run a job."""
        command, arguments = self.command, self.spelled(overrides)
        app.say(command.name, f"[{number + 1}/{self.total}] {arguments}")
        try:
            job = command.run(prepare())
        except Exception as error:
            line = app.explain(error, command, self.arguments) or f"{type(error).__name__}: {error}"
            job = Job(arguments, "failed", line)
        self.jobs.append(job)
        return job


def _choices(override: Any) -> list[str]:
    """Expand an override of a sweep into overrides of single values."""
    if override.is_interval_sweep():
        line = f"{as_written(override)}: list the values of a sweep, as key=0.1,0.2"
        raise ValueError(f"{line}; {SEARCHES}")
    sweeps = override.is_sweep_override()
    values = override.sweep_string_iterator() if sweeps else [override.get_value_element_as_str()]
    return [f"{override.get_key_element()}={value}" for value in values]
