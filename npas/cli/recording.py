"""Train an experiment in its run's folder, and record how it ended in a result file."""

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
from npas.cli import app
from npas.config import CONFIG_FILE, RESULT_FILE, Config
from npas.models import _hub
from npas.reporting import plots, results
from npas.reporting.environment import environment
from npas.reporting.results import Divergence, Init, Metrics, Parallel, Result, Search, Split
from npas.sharing.compression.artifact import read_artifact, write_artifact
from npas.training import Experiment, Outcome, pruning
from npas.training.checkpoint import Checkpoints, Progress
from npas.training.meter import Diverged
from npas.training.metrics import measure
from npas.training.preparation import advise_on_memory
from npas.training.state import load_weights
from npas.utils import files, signals
from npas.utils.packing import Artifact
from npas.utils.processes import Refused

log = logging.getLogger(__name__)

FULL = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space in your quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
OUT_OF_MEMORY = "out of memory"
ARTIFACT_FILE = "artifact.npas"


def remedy(error: int | None) -> str:
    """Return advice for a run's folder that cannot be written, by the system's error number."""
    return f"{FULL.get(error or 0, 'fix that')} and run the same command: it resumes"


def record(experiment: Experiment, folder: Path, announce: Callable[[Experiment], None]) -> Result:
    """Train and write the result file, whether the training succeeds or fails.

    `announce` is called with the experiment that follows a search for groups. Of several processes,
    the one that fails first writes the result, and app.Reported ends all of them. Raises Refused
    for user errors before the training.
    """
    config, process = experiment.config, experiment.process
    with config_file(config, folder) if process.is_main else contextlib.nullcontext():
        if process.is_main:  # an old result is of weights that will be replaced
            (folder / RESULT_FILE).unlink(missing_ok=True)
        process.gather(None)  # before any other process writes its result
        started, artifact = time.perf_counter(), None
        try:
            if experiment.stage == "search":
                outcome, grouping = training.search_groups(experiment, folder)
                if grouping is not None:
                    experiment = training.build(config, grouping, experiment.task)
                    training.prepare(experiment)
                    announce(experiment)
            if experiment.stage == "train":
                outcome, artifact = _train(experiment, folder)
        except Refused:
            raise
        except signals.Preempted:  # between search and training: both are saved
            outcome = _cut_short("preempted", folder, started)
        except Exception as error:  # out of memory, a full disk or a bug
            if process.world > 1 and (folder / RESULT_FILE).exists():
                raise app.Reported from None  # another process failed first
            reason = _describe(error, process.rank, process.world)
            outcome = _cut_short("failed", folder, started, reason)
        if outcome.error == OUT_OF_MEMORY:  # after the handler, whose traceback keeps the tensors
            outcome = dataclasses.replace(outcome, error=advise_on_memory(experiment))
        result = dataclasses.replace(result_of(experiment, outcome), artifact=artifact)
    if process.is_main or result.status == "failed":
        results.write(folder, result)
    if process.world > 1 and result.status == "failed":
        app.say_always(f"rank {process.rank} failed: {result.error}")
        raise app.Reported
    process.gather(None)  # a launcher may kill the others when the first process exits
    return result


def _train(experiment: Experiment, folder: Path) -> tuple[Outcome, Artifact | None]:
    """Train, plot the groups, write the test set's predictions and, if asked for, the artifact."""
    if experiment.grouping is not None and experiment.process.is_main:
        plots.groups(experiment.grouping, folder)
    outcome = training.train(experiment, folder)
    if outcome.status != "done":
        return outcome, None
    if experiment.process.is_main:
        experiment.task.write_predictions("test", folder)
    if not experiment.config.exports:
        return outcome, None
    try:
        return outcome, _export(experiment, folder)
    except (Refused, Diverged) as error:  # the trained weights are saved
        return dataclasses.replace(outcome, status="failed", error=str(error)), None


def _export(experiment: Experiment, folder: Path) -> Artifact:
    """Write the newest checkpoint's network to `folder`, read it back and evaluate it on test data.

    Call it in all processes. The experiment's network then has the weights read back. Raises
    Refused, and writes nothing, if the artifact exceeds the budget in bytes.
    """
    config, model, process = experiment.config, experiment.model, experiment.process
    path, found = folder / ARTIFACT_FILE, None
    with process.together():
        if process.is_main:
            path.unlink(missing_ok=True)  # an artifact of older weights
            newest = Checkpoints(folder / "checkpoints").newest()
            assert newest is not None
            load_weights(model, newest)
            found = write_artifact(model, path, **config.artifact.keywords, cap=config.cap)
            read_artifact(path, model)
    found = process.from_leader(found)
    assert found is not None
    process.broadcast_all(model)
    return dataclasses.replace(found, metrics=measure(experiment, "test"))


def _cut_short(status: str, folder: Path, started: float, error: str | None = None) -> Outcome:
    """Return the outcome of a run that was interrupted; its progress is that last saved."""
    newest = Checkpoints(folder / "checkpoints").newest()
    done = newest.progress if newest else Progress()
    seconds = done.elapsed_s or time.perf_counter() - started
    found = Outcome(status, {}, done.step, done.epoch, seconds, 0, error)
    return dataclasses.replace(found, earlier=done.earlier, earlier_code=done.earlier_code)


def _describe(error: Exception, rank: int, world: int) -> str:
    """Return the message to record of an exception; print its traceback if it is a bug."""
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    # For a full disk or quota, safetensors raises an error of its own, not OSError.
    for number in FULL:
        if os.strerror(number) in str(error):
            return f"{os.strerror(number)}: {remedy(number)}"
    if world > 1:
        app.say_always(f"rank {rank}:")
    if isinstance(error, ValueError) and world == 1 and os.environ.get("NPAS_DEBUG") != "1":
        return " ".join(str(error).split())  # it names damaged data
    traceback.print_exc()
    return " ".join(f"{type(error).__name__}: {error}".split())


def result_of(experiment: Experiment, outcome: Outcome) -> Result:
    """Return the result of a training."""
    config, process, found = experiment.config, experiment.process, experiment.grouping
    plan, task = experiment.allocation, experiment.task
    if plan is None:
        count = sharing.count_parameters(experiment.model)
        budget, split = sharing.BudgetReport.of_dense(count), Split(0, 0, 0, unshared=count)
    else:
        budget, split = plan.budget, Split(**plan.split)
    search = divergence = None
    if found is not None:
        search = Search(found.method, found.num_groups, found.epochs, found.steps, found.wall_s)
    if outcome.diverged_at is not None:
        divergence = Divergence(outcome.diverged_at, outcome.norms or {})
    dataset = results.Dataset(task.name, task.source)
    if (compared := task.compared).found and task.source == "real":
        files_of = dict(compared.found)
        dataset = results.Dataset(task.name, task.source, compared.published, files_of)
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
        earlier_code=outcome.earlier_code or None,
        divergence=divergence,
        init=None if experiment.init is None else Init(**experiment.init),
        hub=_hub_commits(config),
        pruning=pruning.found(experiment, budget.used),
        **environment(),
    )


def _hub_commits(config: Config) -> dict[str, str] | None:
    """Return the commits of the Hugging Face hub that were read, by config key."""
    found = {
        f"{node}.{key}": _hub.COMMITS[value]
        for node in ("model", "task")
        for key, value in vars(getattr(config, node)).items()
        if isinstance(value, str) and value in _hub.COMMITS
    }
    return found or None


@contextlib.contextmanager
def locked_folder(config: Config, folder: Path) -> Iterator[None]:
    """Lock the run's folder by a file beside it. Raises ValueError if another process has it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder.with_name(f".{folder.name}.lock"), wait=False))
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being trained by another process: wait for it, or set run_root"
            ) from None
        except OSError as error:
            raise ValueError(
                f"run_root={config.run_root} is not a writable folder ({error.strerror}:"
                f" {error.filename}): name another"
            ) from None
        yield


@contextlib.contextmanager
def config_file(config: Config, folder: Path) -> Iterator[None]:
    """Write config.yaml into the run's folder; remove a new folder if the run is refused."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.tmp"):  # left by a process killed while writing
        path.unlink(missing_ok=True)
    file = folder / CONFIG_FILE
    files.write_whole(file, OmegaConf.to_yaml(OmegaConf.create(schema.to_dict(config))))
    try:
        yield
    except Refused:
        if is_new:
            file.unlink()
            with contextlib.suppress(OSError):  # the folder is not empty
                folder.rmdir()
        raise
