"""Train a network inside its parameter budget and evaluate it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npas import config as schema
from npas.cli import app, entry, experiments
from npas.cli.app import Job
from npas.config import Config
from npas.utils import processes, signals
from npas.utils.printing import figure

if TYPE_CHECKING:
    from npas.reporting.results import Result
    from npas.training import Experiment

NAME = "npas-train"
RESUMES = "the same command resumes the run"


def main(argv: Sequence[str] | None = None) -> int:
    """Run npas-train and return its exit code."""
    own = (keys, check, run, close_sweep)
    command = app.Command(NAME, "train", *own, after_interrupt=f"; {RESUMES}")
    # A Python program that calls this, with arguments, expects SIGTERM to end the program.
    try:
        with signals.watching("keep" if argv is None else "deliver"):
            return entry.main(command, argv)
    except signals.Preempted:  # just before the command or after it, which handles its own
        app.say(NAME, f"stopped by a signal; {RESUMES}")
        return signals.EXIT_CODE


def keys() -> set[str]:
    """Return the full names of the keys."""
    return {*schema.known_keys(), "run"}


def check(raw: dict[str, Any]) -> Config:
    """Check all that needs neither data nor a network. Raises ValueError."""
    config = as_started(experiments.check_arguments(raw, trains=True))
    if config.budget != schema.DENSE and not config.sharing.fits:
        from npas.sharing.planning import check_options
        from npas.training.experiment import plan_keywords

        check_options(plan_keywords(config))
    return config


def as_started(config: Config) -> Config:
    """Return the config with the number of processes that torchrun or srun started, if any."""
    here = processes.place()
    if here.world > 1 and config.trainer.devices in (1, here.local_world):
        return schema.in_parts(config, here.world, config.trainer.grad_accum_steps)
    return config


def run(config: Config) -> Job:
    """Train one config, unless it is done already, and write its result file."""
    if config.verbose:
        logging.getLogger("npas").setLevel(logging.DEBUG)
    folder = schema.run_dir(config)
    with signals.watching():
        if signals.requested():  # by a signal to an earlier job of the sweep
            is_done = not config.force and _finished(config, folder) is not None
            return Job(str(folder), "skipped" if is_done else app.WAITING)
        is_alone = processes.place().world == 1
        try:
            if config.trainer.devices > 1 and is_alone:
                return _run_in_workers(config, folder)
            # One of several processes may stop only together with the others.
            with contextlib.nullcontext() if is_alone else signals.deferred():
                return _run_here(config, folder)
        except signals.Preempted:
            line = f"nothing was lost: {_how_to_resume(config)}"
            app.say(NAME, f"stopped by a signal; {line}")
            return Job(str(folder), app.PREEMPTED, line)


def _run_in_workers(config: Config, folder: Path) -> Job:
    """Train in several processes on this machine. Raises ValueError for user errors."""
    from npas.reporting import results
    from npas.training.distributed import WorkersFailed, launch

    if not config.dry_run and (job := _skipped(config, folder)) is not None:
        return job
    before = _stored(folder)
    try:
        result: Job | str = launch(config.trainer, _work, schema.to_dict(config))
    except WorkersFailed as failure:
        found = _stored(folder)
        is_recorded = found is not None and found != before and found.status == "failed"
        if signals.requested() and not is_recorded:  # before a worker could handle the signal
            raise signals.Preempted from None
        line = str(failure)
        if found is not None and is_recorded:
            line = line if failure.was_killed else f"{found.error}"
            results.write(folder, dataclasses.replace(found, error=line))
        app.say(NAME, f"failed: {line}; {folder}")
        return Job(str(folder), "failed", line)
    if isinstance(result, str):
        raise ValueError(result)
    return result


def _work(raw: dict[str, Any]) -> Job | str:
    """Run in one of the workers; return the job, or the message of a user error."""
    try:
        with app.one_line_messages(NAME), signals.watching("keep"):
            return run(check(raw))
    except processes.Refused as error:
        return str(error)
    except app.Reported:
        raise
    except signals.Preempted:  # before the training; the launching process says so
        sys.exit(signals.EXIT_CODE)
    except Exception:  # torch's launcher would not print it
        app.say_always(f"rank {processes.place().rank}:")
        traceback.print_exc()
        raise


def _run_here(config: Config, folder: Path) -> Job:
    """Train in this process, together with the others of its group."""
    from npas.cli.recording import locked_folder
    from npas.training import build, prepare, stored_grouping
    from npas.training.distributed import joined
    from npas.training.tracking import mode_of

    with joined(config.trainer) as process, contextlib.ExitStack() as stack:
        if not process.is_main:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        skipped = None
        with process.together():
            if process.is_main and not config.dry_run:
                skipped = _skipped(config, folder)
        if (skipped := process.from_leader(skipped)) is not None:
            return skipped
        if config.dry_run:
            with process.together():
                return _dry_run(config, folder)
        grouping = None
        with process.together():
            if process.is_main:
                stack.enter_context(locked_folder(config, folder))
                grouping = stored_grouping(config, folder)
        grouping = process.from_leader(grouping)
        with process.together():
            experiment = build(config, grouping)
        with process.together():
            prepare(experiment)
        experiments.warn_of_ignored(NAME, config)
        if (mode := mode_of(config)) != config.wandb.mode:
            app.say(NAME, f"WANDB_MODE={mode} overrules wandb.mode={config.wandb.mode}")
        app.echo(_describe(experiment))
        return _train(experiment, folder)


def _dry_run(config: Config, folder: Path) -> Job:
    """Take one step of the run and write nothing."""
    from npas.training import build, prepare
    from npas.training.preparation import one_step

    data = dataclasses.replace(config.data, download=False)  # a download would write files
    experiment = build(dataclasses.replace(config, data=data))
    prepare(experiment)
    experiments.warn_of_ignored(NAME, config)
    app.echo(_describe(experiment))
    line = one_step(experiment)
    app.echo(f"dry run: {line}; nothing was written, the run would be {folder}")
    return Job(str(folder))


def _train(experiment: Experiment, folder: Path) -> Job:
    """Train, record the result, and print how it ended."""
    from npas.cli.recording import record, remedy

    config = experiment.config
    try:
        result = record(experiment, folder, lambda found: app.echo(_describe(found)))
    except OSError as error:
        line = f"{folder} cannot be written ({error.strerror}): {remedy(error.errno)}"
        if experiment.process.world > 1:
            app.say_always(f"{NAME}: rank {experiment.process.rank} failed: {line}")
            raise app.Reported from None
        app.say(NAME, f"failed: {line}")
        return Job(str(folder), "failed", line)
    ended = result.error
    if result.status == app.PREEMPTED:
        ended = f"stopped by a signal after step {result.steps}; {_how_to_resume(config)}"
    if ended is not None:
        app.say(NAME, f"{result.status}: {ended}; {folder}")
        return Job(str(folder), result.status, ended)
    app.echo(f"{result.status}: {_summary(result)}; {folder}")
    return Job(str(folder), result.status, _summary(result))


def _how_to_resume(config: Config) -> str:
    """Return which command resumes the run."""
    again = "with resume=auto " if config.resume == "never" else ""
    return f"the same command {'without force=true ' if config.force else again}resumes the run"


def _skipped(config: Config, folder: Path) -> Job | None:
    """Return the job of a run that is done already, else None."""
    if config.force or (done := _finished(config, folder)) is None:
        return None
    app.echo(f"skipped: {_summary(done)}; {folder} (force=true trains it again)")
    return Job(str(folder), "skipped", _summary(done))


def close_sweep(jobs: list[Job]) -> None:
    """Print each job of a sweep, and a table of the metric by budget if several have finished.

    Of jobs in other processes, only the first to fail is known.
    """
    from npas.reporting import by_budget

    if not jobs:
        app.echo("the launcher's jobs are done; their run folders hold the results")
    names = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        app.echo(f"{job.status:9}  {job.name:{names}}  {job.detail}".rstrip())
    by_budget.close_sweep([Path(job.name) for job in jobs if job.fine], app.echo)


def _describe(experiment: Experiment) -> str:
    """Describe the training to come: the allocation, or the search for groups."""
    config, lines = experiment.config, []
    if experiment.stage == "train":
        lines.append(experiments.plan_text(experiment.model, experiment.allocation))
        if config.pruning.method is not None:
            from npas.sharing import count_parameters
            from npas.training import pruning

            used = count_parameters(experiment.model)
            lines.append(str(pruning.planned(config, experiment.task.spec, used)))
        if config.exports:
            from npas.sharing import price

            taken = price(experiment.model, experiment.allocation, config.artifact)
            lines.append(experiments.artifact_text(taken, config))
    else:
        assert experiment.allocation is not None
        lines.append(
            f"searching {config.sharing.num_groups} groups for {experiment.epochs} epochs: one"
            f" group of {len(experiment.allocation.layers)} layers,"
            f" {config.sharing.search.templates} templates each,"
            f" {experiment.allocation.budget.used:,} parameters"
        )
    if "=" in (arithmetic := experiment.batch_arithmetic()):
        lines.append(f"batch    {arithmetic}")
    if experiment.task.source == schema.SYNTHETIC:
        lines.append(
            f"data     synthetic, in the format of {experiment.task.name}: a dry run with epochs="
            f"{config.epochs} batch_size={config.batch_size} (data.synthetic); metrics mean nothing"
        )
    return "\n".join(lines)


def _stored(folder: Path) -> Result | None:
    """Read a run's result; None if there is no valid one."""
    from npas.reporting import results

    if not (folder / schema.RESULT_FILE).exists():
        return None
    try:
        return results.read(folder)
    except (ValueError, OSError) as error:
        app.say(NAME, f"warning: the run counts as unfinished: {error}")
        return None


def _finished(config: Config, folder: Path) -> Result | None:
    """Return the result of this config if it was trained to the end."""
    result = _stored(folder)
    if result is None or result.status != "done":
        return None
    return result if result.config_hash == schema.config_hash(config) else None


def _summary(result: Result) -> str:
    budget, metrics = result.budget, result.metrics
    assert budget is not None and metrics is not None  # of every finished run
    where = " on synthetic data" if result.dataset.source == schema.SYNTHETIC else ""
    if result.dataset.published is False:
        where = " on data that are not the published ones"
    metric = next(iter(metrics.last))  # the main metric comes first
    text = f"asked {budget.asked}, allowed {budget.allowed:,}, used {budget.used:,} parameters"
    text += f"; test {metric} {figure(metric, metrics.last[metric])}{where}"
    text += " (last epoch)" if result.steps else " (not trained)"
    if metrics.selected is not None and result.steps:
        chosen = figure(metric, metrics.selected[metric])
        text += f", {chosen} (chosen on {metrics.selected_on})"
    if (artifact := result.artifact) is not None:
        assert artifact.metrics is not None
        read_back = figure(metric, artifact.metrics[metric])
        text += f"; artifact {artifact.bytes:,} bytes, {read_back} read back"
    return text


if __name__ == "__main__":
    sys.exit(main())
