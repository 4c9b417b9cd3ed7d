"""Train a network inside its parameter budget and evaluate it.

npas-train                                               # digits at a tenth, about a minute
npas-train +exp=wrn_cifar100 budget=0.1 seed=1
npas-train -m budget=0.05,0.1,0.5,1,2 seed=0,1,2         # a sweep; finished jobs are skipped
npas-train run=runs/digits/budget-0.1_seed-0_1f0c2a9b    # as its config.yaml says, goes on there
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from npas import config as schema
from npas.cli import app, entry, runs
from npas.cli.app import Job
from npas.config import Config
from npas.utils import processes, signals
from npas.utils.printing import LOSSES, figure

if TYPE_CHECKING:
    from npas.reporting.results import Result
    from npas.training import Experiment

Within = Literal["sweep", "search"] | None
NAME = "npas-train"
AGAIN = "the same command goes on"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the arguments describe; see the top of this file."""
    resumes = f"; {AGAIN}"
    command = app.Command(
        NAME,
        "train",
        keys,
        _check,
        _start,
        close_sweep,
        lambda asked, has_value: _start(asked, "search" if has_value else "sweep"),
        after_interrupt=resumes,
    )
    # Whoever calls this from Python, with arguments of its own, expects its own SIGTERM to end it.
    with signals.watching("keep" if argv is None else "deliver"):
        return entry.main(command, argv)


def keys() -> set[str]:
    """Return the full names of the keys."""
    return {*schema.known_keys(), "run"}


def _check(raw: dict[str, Any]) -> tuple[Config, str | None]:
    """Check a config, and return what to say of its `run=`; ValueError."""
    config, note = runs.check_arguments(raw)
    return as_started(config), note


def as_started(config: Config) -> Config:
    """Return the config with the number of processes that torchrun or srun started, if they did."""
    here = processes.place()
    if here.world > 1 and config.trainer.devices in (1, here.local_world):
        return schema.in_parts(config, here.world, config.trainer.grad_accum_steps)
    return config


def _start(asked: tuple[Config, str | None], within: Within = None) -> Job:
    config, note = asked
    if note is not None:
        app.say(NAME, note)
    return run(config, within)


def run(config: Config, within: Within = None) -> Job:
    """Train one config, unless that is done already, and leave its result file; ValueError.

    `within` a sweep less is printed; within a search the job must have a value to search by.
    """
    if config.verbose:
        logging.getLogger("npas").setLevel(logging.DEBUG)
    folder = schema.run_dir(config)
    with signals.watching():
        if signals.requested():  # by a signal to the sweep's job before
            is_done = not config.force and _finished(config, folder) is not None
            return Job(str(folder), "skipped" if is_done else app.WAITING)
        is_alone = processes.place().world == 1
        try:
            if config.trainer.devices > 1 and is_alone:
                return _run_in_workers(config, folder, within)
            # One of several processes may not leave before it has told the others.
            with contextlib.nullcontext() if is_alone else signals.deferred():
                return _run_here(config, folder, within)
        except signals.Preempted:
            line = f"nothing was lost: {_again(config)}"
            app.say(NAME, f"stopped by a signal; {line}")
            return Job(str(folder), app.PREEMPTED, line)


def _run_in_workers(config: Config, folder: Path, within: Within) -> Job:
    """Train in processes of their own on this machine; ValueError for what they refuse."""
    from npas.reporting import results
    from npas.training.launch import WorkersFailed, launch

    if not config.dry_run and (job := _skipped(config, folder)) is not None:
        return job
    before = _stored(folder)
    try:
        answer = launch(config.trainer, _work, schema.to_dict(config), within)
    except WorkersFailed as failure:
        found = _stored(folder)
        has_told = found is not None and found != before and found.status == "failed"
        if signals.requested() and not has_told:  # before a worker was ready to wait
            raise signals.Preempted from None
        line = str(failure)
        if found is not None and has_told:
            line = line if failure.was_killed else f"{found.error}"
            results.write(folder, dataclasses.replace(found, error=line))
        app.say(NAME, f"failed: {line}; {folder}")
        return Job(str(folder), "failed", line)
    if isinstance(answer, str):
        raise ValueError(answer)
    return Job(*answer)


def _work(raw: dict[str, Any], within: Within) -> tuple[Any, ...] | str:
    """Run in one of the workers: return the job as plain data, or why it is refused."""
    try:
        with app.one_line_messages(NAME):
            config, _ = _check(raw)
            with signals.watching("keep"):
                job = run(config, within)
    except processes.Refused as error:
        return str(error)
    except app.Reported:
        raise
    except Exception:  # of which torch's launcher would say nothing
        app.say_always(f"rank {processes.place().rank}:")
        traceback.print_exc()
        raise
    return job.name, job.status, job.detail, job.value


def _run_here(config: Config, folder: Path, within: Within) -> Job:
    """Train in this process and those that were started beside it."""
    from npas.cli.recording import alone
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
        if process.from_leader(skipped) is not None:
            return skipped or Job(str(folder), "skipped")
        if config.dry_run:
            with process.together():
                return _try(config, folder)
        grouping = None
        with process.together():
            if process.is_main:
                stack.enter_context(alone(config, folder))
                grouping = stored_grouping(config, folder)
        grouping = process.from_leader(grouping)
        with process.together():
            experiment = build(config, grouping)
            if within == "search" and not experiment.task.has_validation:
                raise ValueError(
                    "a search needs held-out data, but"
                    f" data.val_fraction={config.data.val_fraction} holds none out: set it"
                )
        with process.together():
            prepare(experiment)
        runs.warn_of_ignored(NAME, config)
        if (mode := mode_of(config)) != config.wandb.mode:
            app.say(NAME, f"WANDB_MODE={mode} overrules wandb.mode={config.wandb.mode}")
        app.tell(_what_follows(experiment, within))
        return _train(experiment, folder, within)


def _try(config: Config, folder: Path) -> Job:
    """Do one step of the run and write nothing."""
    from npas.cli.recording import check_writable
    from npas.training import build, prepare
    from npas.training.dry_run import one_step

    check_writable(config, folder)
    data = dataclasses.replace(config.data, download=False)  # to download is to write
    experiment = build(dataclasses.replace(config, data=data))
    prepare(experiment)
    runs.warn_of_ignored(NAME, config)
    app.tell(_what_follows(experiment))
    line = one_step(experiment)
    app.tell(f"dry run: {line}; nothing was written, the run would be {folder}")
    return Job(str(folder))


def _train(experiment: Experiment, folder: Path, within: Within) -> Job:
    """Train, record it, and say how it ended."""
    from npas.cli.recording import record, remedy

    config = experiment.config
    try:
        result = record(experiment, folder, lambda found: app.tell(_what_follows(found, within)))
    except OSError as error:
        line = f"{folder} cannot be written ({error.strerror}): {remedy(error)}"
        if experiment.process.world > 1:
            app.say_always(f"{NAME}: rank {experiment.process.rank} failed: {line}")
            raise app.Reported from None
        app.say(NAME, f"failed: {line}")
        return Job(str(folder), "failed", line)
    ended = result.error
    if result.status == app.PREEMPTED:
        ended = f"stopped by a signal after step {result.steps}; {_again(config)}"
    if ended is not None:
        app.say(NAME, f"{result.status}: {ended}; {folder}")
        return Job(str(folder), result.status, ended)
    beside = _beside_dense(config, experiment.task.selection_metric)
    app.tell(f"{result.status}: {_summary(result)}{beside}; {folder}")
    return Job(str(folder), result.status, _summary(result), _value(result))


def _again(config: Config) -> str:
    """Return how to go on."""
    if config.force:
        return "the same command without force=true goes on"
    return "the same command with resume=auto goes on" if config.resume == "never" else AGAIN


def _skipped(config: Config, folder: Path) -> Job | None:
    """Return the job of a run that is done already, None if there is something to do."""
    if config.force or (done := _finished(config, folder)) is None:
        return None
    _warn_of_other_start(config, done)
    app.tell(f"skipped: {_summary(done)}; {folder} (force=true trains it again)")
    return Job(str(folder), "skipped", _summary(done), _value(done))


def _warn_of_other_start(config: Config, done: Result) -> None:
    """Warn if what `sharing.init` names is no longer what the run started from."""
    if config.sharing.weights is not None and done.init is not None:
        from npas.training.initial import weights_sum

        with contextlib.suppress(ValueError, OSError):  # gone since
            if weights_sum(Path(config.sharing.weights)) != done.init.weights:
                line = f"sharing.init={config.sharing.init} holds other weights than then"
                app.say(NAME, f"warning: {line}")


def close_sweep(jobs: list[Job]) -> None:
    """Print what became of each job of a sweep, of those in other processes the first to fail.

    The metric by budget follows, where more than one setting has finished.
    """
    from npas.reporting import by_budget

    if not jobs:
        app.tell("the launcher's jobs are done; their run folders hold the results")
    names = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        app.tell(f"{job.status:9}  {job.name:{names}}  {job.detail}".rstrip())
    by_budget.close_sweep([Path(job.name) for job in jobs if job.fine], app.tell)


def _what_follows(experiment: Experiment, within: Within = None) -> str:
    """Return what is about to be trained: the allocation, or the search for one, and in how many.

    Within a sweep, of the allocation only the last line, which is the budget.
    """
    config, lines = experiment.config, []
    if experiment.stage == "train":
        plan = runs.plan_text(experiment.model, experiment.allocation)
        lines.append(plan.splitlines()[-1] if within else plan)
        if config.pruning.method is not None:
            from npas.sharing import count_parameters
            from npas.training import pruning

            used = count_parameters(experiment.model)
            lines.append(str(pruning.planned(config, experiment.task.spec, used)))
    else:
        assert experiment.allocation is not None
        lines.append(
            f"searching {config.sharing.num_groups} groups for {experiment.epochs} epochs: one"
            f" group of {len(experiment.allocation.layers)} layers,"
            f" {config.sharing.search.templates} templates each,"
            f" {experiment.allocation.budget.used:,} parameters"
        )
    if config.exports and experiment.stage == "train":
        from npas.sharing import price

        taken = price(experiment.model, experiment.allocation, config.artifact)
        lines.append(runs.artifact_text(taken, config))
    if "=" in (arithmetic := experiment.batch_arithmetic()):
        lines.append(f"batch    {arithmetic}")
    if experiment.task.source == schema.SYNTHETIC:
        lines.append(
            f"data     synthetic, in the format of {experiment.task.name}: a dry run with epochs="
            f"{config.epochs} batch_size={config.batch_size} (data.synthetic); metrics mean nothing"
        )
    return "\n".join(lines)


def _stored(folder: Path) -> Result | None:
    from npas.reporting import results

    try:
        return results.read(folder)
    except (ValueError, OSError):
        return None


def _finished(config: Config, folder: Path) -> Result | None:
    """Return the result of this very config if it was trained to the end."""
    from npas.reporting import results

    if not (folder / results.FILE_NAME).exists():
        return None
    try:
        result = results.read(folder)
    except (ValueError, OSError) as error:
        app.say(NAME, f"warning: taking the run as unfinished: {error}")
        return None
    same = result.config_hash == schema.config_hash(config)
    return result if same and result.status == "done" else None


def _summary(result: Result) -> str:
    budget, metrics = result.budget, result.metrics
    assert budget is not None and metrics is not None  # the schema's promise for a run that is done
    where = " on synthetic data" if result.dataset.source == schema.SYNTHETIC else ""
    if result.dataset.published is False:
        where = " on data that are not the published ones"
    metric = next(iter(metrics.last))  # the first is the one that counts
    text = f"asked {budget.asked}, allowed {budget.allowed:,}, used {budget.used:,} parameters"
    text += f"; test {metric} {figure(metric, metrics.last[metric])}{where} (last epoch)"
    if metrics.selected is not None:
        epoch = _chosen_epoch(result, str(metrics.selected_on), metrics.selected)
        chosen = figure(metric, metrics.selected[metric])
        text += f", {chosen} ({epoch}chosen on {metrics.selected_on})"
    if (artifact := result.artifact) is not None:
        assert artifact.metrics is not None
        read_back = figure(metric, artifact.metrics[metric])
        text += f"; artifact {artifact.bytes:,} bytes, {read_back} read back"
    return text


def _chosen_epoch(result: Result, chosen_on: str, chosen: dict[str, float | None]) -> str:
    """Name the last epoch that measured what the chosen one did, as far as that is recorded."""
    metric, history = chosen_on.replace(" ", "/", 1), result.history or {}
    measured = zip(history.get("epoch", []), history.get(metric, []), strict=False)
    epochs = [epoch for epoch, value in measured if value == chosen.get(metric)]
    return f"epoch {max(epochs)}, " if epochs else ""


def _value(result: Result) -> float | None:
    """Return the best of the held-out metrics that chose the checkpoint; None if none were.

    Losses are negated: of a value to search by, more is better.
    """
    history = result.history or {}
    held_out = [key for key in history if key.startswith("val/")]
    if not held_out:
        return None
    name = held_out[0]  # the first is the one that counts
    is_loss = name.removeprefix("val/") in LOSSES
    return -min(history[name]) if is_loss else max(history[name])


def _beside_dense(config: Config, metric: str) -> str:
    """Quote the committed figure of the dense network, where there is one."""
    from npas.reporting import tables

    if config.budget == schema.DENSE or config.data.source == schema.SYNTHETIC:
        return ""
    dense = tables.dense_figure(config, metric)
    unit = "" if metric in LOSSES else "%"
    return "" if dense is None else f"; dense: {dense}{unit} over {dense.n} seeds"


if __name__ == "__main__":
    sys.exit(main())
