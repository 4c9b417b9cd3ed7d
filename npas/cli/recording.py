"""Train an experiment in its run's folder, and record in a result file how that ended."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from omegaconf import OmegaConf

from npas import config as schema
from npas import sharing, training
from npas.cli import app, runs
from npas.config import Config
from npas.models import _hub
from npas.reporting import plots, results
from npas.reporting.environment import environment
from npas.reporting.results import (
    Dataset,
    Divergence,
    Init,
    Metrics,
    Parallel,
    Result,
    Search,
    Split,
)
from npas.tasks.common import files
from npas.training import Experiment, Outcome, initial, pruning
from npas.training.artifact import export
from npas.training.checkpoint import Checkpoints
from npas.training.dry_run import advise_on_memory
from npas.training.meter import Diverged
from npas.training.progress import Progress, read_progress
from npas.utils import signals
from npas.utils.processes import Refused

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = "out of memory"
REMEDY = "free space and run the same command: it resumes"


def remedy(error: OSError) -> str:
    """Return what to do about a run's folder that cannot be written."""
    return REMEDY if error.errno in FULL else "fix that and run the same command: it resumes"


def record(experiment: Experiment, folder: Path, announce: Callable[[Experiment], None]) -> Result:
    """Train, and write the result file however it ends; Refused if it cannot even begin.

    `announce` is told of the experiment that a search for groups leads to. Where several processes
    train, the one that fails first writes the result, and app.Reported ends it and the others.
    """
    config, process = experiment.config, experiment.process
    with config_file(config, folder) if process.is_main else contextlib.nullcontext():
        if process.is_main:  # what it says is of weights that are about to be replaced
            (folder / results.FILE_NAME).unlink(missing_ok=True)
        process.gather(None)  # so that it is gone before any other might write its own
        started, artifact = time.perf_counter(), None
        try:
            if experiment.stage == "search":
                outcome, grouping = training.search_groups(experiment, folder)
                if grouping is not None:
                    experiment = training.build(config, grouping, experiment.task)
                    training.prepare(experiment)
                    announce(experiment)
            if experiment.stage == "train":
                if experiment.grouping is not None and process.is_main:
                    plots.groups(experiment.grouping, folder)
                if experiment.start is not None and process.is_main:
                    initial.keep(experiment.start, folder)
                outcome = training.train(experiment, folder)
                if outcome.status == "done" and process.is_main:
                    experiment.task.write_predictions("test", folder)
                if outcome.status == "done" and config.exports:
                    try:
                        artifact = export(experiment, folder)
                    except (Refused, Diverged) as error:  # what was trained is saved
                        outcome = dataclasses.replace(outcome, status="failed", error=str(error))
        except Refused:
            raise
        except signals.Preempted:  # between the trainings: all that they did is saved
            outcome = _cut_short("preempted", folder, started)
        except Exception as error:  # out of memory, a full disk, a fault of ours: it has failed
            if process.world > 1 and (folder / results.FILE_NAME).exists():
                raise app.Reported from None  # it was another process that failed
            reason = _why(error, process.rank, process.world)
            outcome = _cut_short("failed", folder, started, reason)
        if outcome.error == OUT_OF_MEMORY:  # not in the handler, whose traceback holds the tensors
            outcome = dataclasses.replace(outcome, error=advise_on_memory(experiment))
        result = dataclasses.replace(result_of(experiment, outcome), artifact=artifact)
    if process.is_main or result.status == "failed":
        results.write(folder, result)
    if process.world > 1 and result.status == "failed":
        app.say_always(f"rank {process.rank} failed: {result.error}")
        raise app.Reported
    process.gather(None)  # a launcher may end those that are left when the first has gone
    return result


def _cut_short(status: str, folder: Path, started: float, error: str | None = None) -> Outcome:
    """Return the outcome of a run that ended out of turn: it has come as far as it has saved."""
    newest = Checkpoints(folder / "checkpoints").newest()
    done = read_progress(newest) if newest else Progress()
    seconds = done.elapsed_s or time.perf_counter() - started
    return Outcome(status, {}, done.step, done.epoch, seconds, 0, error, earlier=done.earlier)


def _why(error: Exception, rank: int, world: int) -> str:
    """Return what to record of an exception; print its traceback where it is a fault of ours."""
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    # Not every library raises OSError for a full disk or quota: safetensors has its own error.
    for word in map(os.strerror, FULL):
        if word in str(error):
            return f"{word}: {REMEDY}"
    if world > 1:
        app.say_always(f"rank {rank}:")
    if isinstance(error, ValueError) and world == 1 and os.environ.get("NPAS_DEBUG") != "1":
        return " ".join(str(error).split())  # data that went bad, and that it names
    traceback.print_exc()
    return " ".join(f"{type(error).__name__}: {error}".split())


def result_of(experiment: Experiment, outcome: Outcome) -> Result:
    """Put together what a result file says."""
    config, process, found = experiment.config, experiment.process, experiment.grouping
    plan, task = experiment.allocation, experiment.task
    if plan is None:
        count = sharing.count_parameters(experiment.model)
        budget, split = sharing.BudgetReport.of_dense(count), Split(0, 0, 0, unshared=count)
    else:
        budget, split = plan.budget, Split(**plan.split)
    search = divergence = init = None
    if found is not None:
        search = Search(found.method, found.num_groups, found.epochs, found.steps, found.wall_s)
    if outcome.diverged_at is not None:
        divergence = Divergence(outcome.diverged_at, outcome.norms or {})
    if config.sharing.init and (start := initial.kept(schema.run_dir(config))) is not None:
        init = Init(start.weights, start.became)
    dataset = Dataset(task.name, task.source)
    if task.compared is not None and task.source == "real":
        compared = dict(task.compared.found)
        dataset = Dataset(task.name, task.source, task.compared.published, compared)
    parts = config.trainer.grad_accum_steps
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
        dataset=dataset,
        error=outcome.error,
        history=outcome.history,
        search=search,
        parallel=Parallel(process.world, process.nodes, parts, outcome.earlier),
        divergence=divergence,
        init=init,
        hub=_hub_commits(config),
        pruning=pruning.found(experiment, budget.used),
        **environment(),
    )


def _hub_commits(config: Config) -> dict[str, str] | None:
    """Return which commits of the Hugging Face hub were read, by the keys that named them."""
    found = {
        f"{node}.{key}": _hub.COMMITS[value]
        for node in ("model", "task")
        for key, value in vars(getattr(config, node)).items()
        if isinstance(value, str) and value in _hub.COMMITS
    }
    return found or None


@contextlib.contextmanager
def alone(config: Config, folder: Path) -> Iterator[None]:
    """Keep other processes out of the run's folder; ValueError if one is in it.

    The lock lies beside the folder while the run lasts.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder.with_name(f".{folder.name}.lock"), wait=False))
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being trained by another process: wait for it, or set run_root"
            ) from None
        except OSError as error:
            raise _unwritable(config, f"{error.strerror}: {error.filename}") from None
        yield


def _unwritable(config: Config, why: str) -> ValueError:
    return ValueError(
        f"run_root={config.run_root} is no folder that can be written to ({why}): name another"
    )


def check_writable(config: Config, folder: Path) -> None:
    """Raise ValueError where a run's folder, which need not exist, could not be written to."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise _unwritable(config, str(nearest))


@contextlib.contextmanager
def config_file(config: Config, folder: Path) -> Iterator[None]:
    """Put config.yaml into the run's folder; leave no folder if the run cannot begin."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.tmp"):  # left by a process that was killed while it wrote
        path.unlink(missing_ok=True)
    file = folder / runs.CONFIG_FILE
    if found := runs.edited(folder, config):
        kept = file.with_name("config.edited.yaml")
        os.replace(file, kept)
        log.warning(
            "%s was edited (%s): it is kept as %s, which `npas-train run=%s` trains; this run goes"
            " by the command line",
            *(file, found, kept.name, kept),
        )
    files.write_whole(file, OmegaConf.to_yaml(OmegaConf.create(schema.to_dict(config))))
    try:
        yield
    except Refused:
        if is_new:
            file.unlink()
            with contextlib.suppress(OSError):  # something was done after all
                folder.rmdir()
        raise
