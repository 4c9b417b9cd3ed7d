"""Train a network inside its parameter budget and evaluate it.

npas-train                                               # digits at a tenth, about a minute
npas-train +exp=wrn_cifar100 budget=0.1 seed=1
npas-train -m budget=0.05,0.1,0.5,1,2 seed=0,1,2         # a sweep; finished jobs are skipped
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from npas import config as schema
from npas.cli import app, runs
from npas.cli.app import Job
from npas.config import Config

if TYPE_CHECKING:
    from npas.reporting.results import Result
    from npas.training import Experiment

NAME = "npas-train"
REMEDY = "free space and run the same command: it resumes"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the words describe; see the top of this file."""
    resumes = "; the same command resumes"
    command = app.Command(
        NAME, "train", schema.known_keys, runs.check, run, close_sweep, after_interrupt=resumes
    )
    return app.main(command, argv)


def run(config: Config) -> Job:
    """Train one config, unless that is done already, and leave its result file."""
    from npas.reporting import results
    from npas.training import build, prepare, stored_grouping

    if config.verbose:
        logging.getLogger("npas").setLevel(logging.DEBUG)
    folder = schema.run_dir(config)
    if not config.force and (done := _finished(config, folder)) is not None:
        print(f"skipped: {_summary(done)}; {folder} (force=true trains it again)", flush=True)
        return Job(str(folder), "skipped", _summary(done))
    experiment = build(config, stored_grouping(config, folder))
    with _alone(config, folder):
        prepare(experiment)
        runs.warn_of_ignored(NAME, config)
        print(_what_follows(experiment), flush=True)
        try:
            with _config_file(config, folder):
                # What it says is of weights that are about to be replaced.
                (folder / results.FILE_NAME).unlink(missing_ok=True)
                result = _train(experiment, folder)
            results.write(folder, result)
        except OSError as error:
            line = f"{folder} cannot be written ({error.strerror}): {REMEDY}"
            app.say(NAME, f"failed: {line}")
            return Job(str(folder), "failed", line)
    if result.error is not None:
        app.say(NAME, f"{result.status}: {result.error}; {folder}")
        return Job(str(folder), result.status, result.error)
    beside = _beside_dense(config, experiment.task.selection_metric)
    print(f"{result.status}: {_summary(result)}{beside}; {folder}", flush=True)
    return Job(str(folder), result.status, _summary(result))


def close_sweep(jobs: list[Job]) -> None:
    """Print what became of each job of a sweep; of those in other processes, the first to fail."""
    if not jobs:
        print("the launcher's jobs are done; their run folders hold the results")
    names = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        print(f"{job.status:9}  {job.name:{names}}  {job.detail}")


def _what_follows(experiment: Experiment) -> str:
    """Say what is about to be trained: the allocation, or the search for one."""
    if experiment.stage == "train":
        return runs.plan_text(experiment.model, experiment.allocation)
    assert experiment.allocation is not None
    settings, budget = experiment.config.sharing, experiment.allocation.budget
    return (
        f"searching {settings.num_groups} groups for {experiment.epochs} epochs: one group of"
        f" {len(experiment.allocation.layers)} layers, {settings.search.templates} templates each,"
        f" {budget.used:,} parameters"
    )


def _train(experiment: Experiment, folder: Path) -> Result:
    """Train, and record it however it ends; ValueError if it cannot even begin."""
    from npas import sharing
    from npas.reporting import group_plot
    from npas.reporting.results import Budget, Dataset, Metrics, Result, Search, Split, environment
    from npas.training import Outcome, build, search_groups, train

    config, started = experiment.config, time.perf_counter()
    try:
        if experiment.stage == "search":
            outcome, grouping = search_groups(experiment, folder)
            if grouping is not None:
                experiment = build(config, grouping, experiment.task)
                print(_what_follows(experiment), flush=True)
        if experiment.stage == "train":
            if experiment.grouping is not None:
                group_plot.draw(experiment.grouping, folder)
            outcome = train(experiment, folder)
    except ValueError:
        raise
    except Exception as error:  # out of memory, a full disk, a fault of ours: the run has failed
        if full := _full_disk(error):
            line = f"{full}: {REMEDY}"
        else:
            traceback.print_exc()
            line = " ".join(f"{type(error).__name__}: {error}".split())
        outcome = Outcome("failed", {}, 0, 0, time.perf_counter() - started, 0, line)
    if experiment.allocation is None:
        count = sharing.count_parameters(experiment.model)
        budget, split = Budget.of_dense(count), Split(0, 0, 0, unshared=count)
    else:
        plan = experiment.allocation.budget
        budget = Budget(plan.asked, plan.dense, plan.allowed, plan.used, plan.utilization)
        split = Split(**experiment.allocation.split)
    found = experiment.grouping
    return Result(
        status=outcome.status,
        exp=config.exp,
        config=schema.to_dict(config),
        config_hash=schema.config_hash(config),
        budget=budget,
        split=split,
        metrics=Metrics(**outcome.metrics) if outcome.metrics else None,
        seed=config.seed,
        steps=outcome.steps,
        epochs=outcome.epochs,
        wall_s=outcome.wall_s,
        peak_memory_bytes=outcome.peak_memory_bytes,
        dataset=Dataset(experiment.task.name, experiment.task.source),
        error=outcome.error,
        history=outcome.history,
        search=None
        if found is None
        else Search(found.method, found.num_groups, found.epochs, found.steps, found.wall_s),
        **environment(),
    )


def _full_disk(error: Exception) -> str | None:
    """Return the system's words for a full disk or quota, if that is what went wrong."""
    words = map(os.strerror, (errno.ENOSPC, errno.EDQUOT))
    # Not every library raises OSError for it: safetensors has an error of its own.
    return next((word for word in words if word in str(error)), None)


@contextlib.contextmanager
def _alone(config: Config, folder: Path) -> Iterator[None]:
    """Keep other processes out of the run's folder; ValueError if one is in it.

    The lock lies beside the folder while the run lasts.
    """
    from npas.tasks._files import locked

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder.with_name(f".{folder.name}.lock"), wait=False))
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being trained by another process: wait for it, or set run_root"
            ) from None
        except OSError as error:
            raise ValueError(
                f"run_root={config.run_root} is no folder that can be written to "
                f"({error.strerror}: {error.filename}): name another"
            ) from None
        yield


@contextlib.contextmanager
def _config_file(config: Config, folder: Path) -> Iterator[None]:
    """Put config.yaml into the run's folder; leave no folder if the run cannot begin."""
    from omegaconf import OmegaConf

    from npas.tasks._files import write_whole

    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    write_whole(file, OmegaConf.to_yaml(OmegaConf.create(schema.to_dict(config))))
    try:
        yield
    except ValueError:
        if is_new:
            file.unlink()
            with contextlib.suppress(OSError):  # something was done after all
                folder.rmdir()
        raise


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
    text = f"asked {budget.asked}, allowed {budget.allowed:,}, used {budget.used:,} parameters"
    for name, figures in (("test", metrics.last), ("chosen on val", metrics.selected)):
        for metric, value in list((figures or {}).items())[:1]:  # the first is the one that counts
            text += f"; {name} {metric} {value:.2f}%"
    return text


def _beside_dense(config: Config, metric: str) -> str:
    """Quote the committed figure of the dense network, where there is one."""
    from npas.reporting import tables

    if config.budget == schema.DENSE:
        return ""
    dense = tables.dense_figure(config, metric)
    return "" if dense is None else f" (dense: {dense}% over {dense.n} seeds)"


if __name__ == "__main__":
    sys.exit(main())
