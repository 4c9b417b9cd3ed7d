"""Run the jobs of a sweep (`-m`): check all, then run each, even if others fail.

A sweeper that searches, as `hydra/sweeper=optuna`, chooses each job by the values of earlier ones:
its jobs are checked one by one, and each returns `Job.value`. Higher is better.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from npas.cli import app
from npas.cli.app import Command, Job
from npas.utils import processes

T = TypeVar("T")

OWN_SWEEPER = "BasicSweeper"  # Hydra's
SECONDS_BETWEEN_LINES = 5.0  # while the jobs are checked, each in about a tenth of a second


class _Ended(BaseException):
    """Ends a search at once: Hydra would catch an `Exception` and count it as a trial."""

    def __init__(self, refusal: ValueError | None = None) -> None:
        self.refusal = refusal


def run(command: Command[T], asked: argparse.Namespace) -> list[Job]:
    """Run the jobs of a sweep and return how each ended. Raises ValueError for invalid ones."""
    if processes.place().world > 1:
        raise ValueError(
            "a sweep (-m) starts its jobs itself: run it without torchrun or srun, and for several"
            " processes a job set trainer.devices=N"
        )
    sweep = _Sweep(command, tuple(asked.overrides))
    asked.overrides.append("hydra.mode=MULTIRUN")
    with tempfile.TemporaryDirectory() as scratch, _checking(sweep.check):
        # Hydra's own launcher and sweeper write nothing worth keeping; others write logs and
        # results to the configured folder.
        keeps = ("hydra/", "hydra.launcher", "hydra.sweeper")
        if not any(word.startswith(keeps) for word in sweep.arguments):
            asked.overrides.append(f"hydra.sweep.dir={scratch}")
        try:
            app.compose(command, asked, sweep.run)
        except app.RunFailed as failure:
            sweep.jobs += [] if failure.job in sweep.jobs else [failure.job]
        except _Ended as ended:
            if ended.refusal is not None:
                raise ended.refusal from None
    if command.close_sweep is not None:
        command.close_sweep(sweep.jobs)
    if sweep.found:
        value, best = max(sweep.found)
        app.echo(f"best: {value:.4g} by {best}")
    return sweep.jobs


class _Sweep(Generic[T]):
    def __init__(self, command: Command[T], arguments: Sequence[str]) -> None:
        self.command = command
        self.arguments = arguments
        self.jobs: list[Job] = []
        self.total: int | None = None  # if known
        self.found: list[tuple[float, str]] = []  # of a search: values and arguments
        self.process = os.getpid()

    def check(self, sweeper: Any) -> None:
        """Compose and check all jobs of Hydra's own sweeper, whose own check only composes them.

        Raises ValueError for the first invalid job.
        """
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import open_dict

        if self.total is not None:  # checked with the first batch
            return
        jobs = [list(overrides) for batch in sweeper.overrides for overrides in batch]
        if not jobs:
            raise ValueError("the sweep has no jobs: one of its lists is empty")
        self.total, printed = len(jobs), time.monotonic()
        hydra = HydraConfig.instance()
        before = hydra.cfg
        try:
            for number, overrides in enumerate(jobs):
                if time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                    printed = time.monotonic()
                    app.say(self.command.name, f"checked {number} of {self.total} jobs")
                loader = sweeper.hydra_context.config_loader
                config = loader.load_sweep_config(sweeper.config, overrides)
                with open_dict(config):
                    config.hydra.job.id = config.hydra.job.num = number
                    hydra.set_config(config)  # values may refer to it
                    del config["hydra"]
                self.command.check(app.plain(config))
        finally:
            hydra.cfg = before

    def run(self, raw: dict[str, Any]) -> float | None:
        """Check and run the job that Hydra has composed; return its value."""
        from hydra.core.hydra_config import HydraConfig

        command, hydra = self.command, HydraConfig.get()
        searches = not hydra.sweeper._target_.endswith(f".{OWN_SWEEPER}")
        if searches:
            _check_direction(hydra.sweeper)
        arguments = " ".join(self._own(hydra.overrides.task))
        total = self.total or hydra.sweeper.get("n_trials")
        app.say(command.name, f"[{hydra.job.num + 1}{f'/{total}' if total else ''}] {arguments}")
        try:
            checked = command.check(raw)
            if command.run_in_sweep is not None:
                job = command.run_in_sweep(checked, searches)
            else:
                job = command.run(checked)
        except Exception as error:
            line = app.explain(error, command, self.arguments) or f"{type(error).__name__}: {error}"
            job = Job(arguments, "failed", line)
        self.jobs.append(job)
        if not job.fine and os.getpid() != self.process:
            # In a process of another launcher, the error reports the failure to the cluster.
            raise app.RunFailed(job)
        if not job.fine and searches:
            may_fail = hydra.sweeper.get("max_failure_rate") and job.status == "failed"
            raise app.RunFailed(job) if may_fail else _Ended
        if searches and job.value is not None:
            self.found.append((job.value, arguments))
        return job.value

    def _own(self, overrides: Sequence[str]) -> list[str]:
        """Return the arguments that differ between the jobs."""
        own = [override for override in overrides if override not in self.arguments]
        return [override.lstrip("+") for override in own or overrides]


@contextlib.contextmanager
def _checking(check: Callable[[Any], None]) -> Iterator[None]:
    """Make Hydra's own sweeper call `check(sweeper)` instead of its own check of the jobs."""
    from hydra.plugins.sweeper import Sweeper

    validate = Sweeper.validate_batch_is_legal

    def checked(sweeper: Any, batch: Sequence[Sequence[str]]) -> None:
        # Compare names: Hydra imports its plugins again, so the classes are not identical.
        if type(sweeper).__name__ == OWN_SWEEPER:
            check(sweeper)
        else:
            validate(sweeper, batch)

    Sweeper.validate_batch_is_legal = checked
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = validate


def _check_direction(sweeper: Any) -> None:
    """Refuse a search for the lowest value, which is optuna's default."""
    asked = sweeper.get("direction", "maximize")
    asked = getattr(asked, "name", asked)
    if asked not in ("maximize", ["maximize"]):
        line = f"hydra.sweeper.direction={asked}, but higher values of a job are better"
        raise _Ended(ValueError(f"{line}: write hydra.sweeper.direction=maximize"))
