"""Save and restore the complete state of a training, so that a resumed run is bit-identical.

Batches and the learning rate are not part of it: they follow from seed, epoch and step.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from npas import models
from npas.config import (
    LOG_FILE,
    OF_PARTS,
    Config,
    config_hash,
    flat,
    in_parts,
    is_excluded,
    parts_of,
    to_dict,
)
from npas.sharing import Allocation, api
from npas.sharing.runtime import install
from npas.training.averaging import AveragedWeights, restoring
from npas.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    Progress,
    find_checkpoint,
    open_checkpoint,
)
from npas.training.experiment import Experiment
from npas.training.grouping import SEARCH, TRAIN
from npas.training.meter import Meter
from npas.utils.files import write_whole
from npas.utils.git import git_state

log = logging.getLogger(__name__)

ID_FILE = "wandb_id"  # holds the run's id in W&B
AVERAGED = "averaged"  # the file of averaged weights in a checkpoint


class TrainState:
    """All state of a training, to be saved and restored at any step."""

    def __init__(
        self, experiment: Experiment, optimizer: torch.optim.Optimizer, run_dir: Path
    ) -> None:
        self.experiment = experiment
        self.config, self.process = experiment.config, experiment.process
        self.model = experiment.model
        self.architecture = models.architecture_of(self.config.model, self.model)
        self.optimizer = optimizer
        self.meter = Meter(self.process)
        decay = self.config.optim.ema_decay
        averages = decay > 0 and experiment.stage == TRAIN
        self.averaged = AveragedWeights(self.model, decay) if averages else None
        self.run_dir = run_dir
        self.store = Checkpoints(run_dir / "checkpoints", self.config.trainer.keep_last)
        self.progress = Progress()
        self.code = asdict(git_state()) if self.process.is_main else None
        self.origin: str | None = None  # the path that `resume` named, absolute
        self.since = time.perf_counter()

    def elapsed_s(self) -> float:
        """Return the training's seconds so far, including earlier, resumed parts of the run."""
        return self.progress.elapsed_s + time.perf_counter() - self.since

    def average(self) -> None:
        if self.averaged is not None:
            self.averaged.update(self.progress.step)

    def save(self) -> None:
        """Write a checkpoint. Raises Diverged if a step was not finite."""
        self.meter.check()
        rng = {"cpu": torch.get_rng_state()}
        if self.process.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.process.device)
        ranks = self.process.gather({"rng": rng, "meter": self.meter.tensors()})
        self.progress.elapsed_s, self.since = self.elapsed_s(), time.perf_counter()
        if not self.process.is_main:
            return
        scaler, grouping = self.experiment.precision.scaler, self.experiment.grouping
        shares = install.is_shared(self.model)
        state = {
            "progress": asdict(self.progress),
            "config": to_dict(self.config),
            "config_hash": config_hash(self.config),
            "scaler": scaler.state_dict() if scaler else None,
            "stage": self.experiment.stage,
            "grouping": grouping.to_dict() if grouping else None,
            # `build` uses it even if it would now plan something else.
            "allocation": api.allocation(self.model).to_dict() if shares else None,
            "architecture": self.architecture,
            "ranks": self.process.world,
            "start": self.experiment.init,
            "teacher": self.experiment.teacher,
            "origin": self.origin,
            "git": self.code,
        }
        tensors = {"model": self.model.state_dict(), "optimizer": self._optimizer_tensors()}
        if self.averaged:
            tensors[AVERAGED] = self.averaged.tensors
        for kind in ("rng", "meter"):
            tensors[kind] = {
                f"{r}/{k}": v for r, own in enumerate(ranks) for k, v in own[kind].items()
            }
        best = self.progress.best
        self.store.save(self.progress.step, state, tensors, best["step"] if best else None)

    def resume(self) -> None:
        found: Checkpoint | None = None
        with self.process.together():
            if self.process.is_main:
                found = self._choose()
        folder = self.process.from_leader(found.folder if found else None)
        if folder is not None:
            with self.process.together():
                self._load(found or open_checkpoint(folder))
            log.info("resuming from %s, after step %d", folder, self.progress.step)

    def _choose(self) -> Checkpoint | None:
        """Make the checkpoint to resume from, if any, the newest of the run's own."""
        if starts_again(self.config):
            self.store.clear()
            (self.run_dir / ID_FILE).unlink(missing_ok=True)
            return None
        found = to_resume(self.config, self.run_dir, self.experiment.stage)
        if found is None:
            return None
        refuse_another_config(self.config, found)
        resume = self.config.resume
        self.origin = found.state.get("origin") if resume == "auto" else _absolute(resume)
        source, best = found.folder.parent, found.progress.best
        self.store.clear(after=found.state["step"])
        if source.resolve() != self.store.folder.resolve():
            found.state["progress"]["wandb_id"] = None  # it belongs to the other run
            with contextlib.suppress(ValueError):  # a lost one is missed at the end
                if best:
                    self.store.take(open_checkpoint(source / self.store.path(best["step"]).name))
            logs = [run / LOG_FILE for run in (source, source.parent)]
            text = next((log.read_text(errors="replace") for log in logs if log.is_file()), "")
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_whole(self.run_dir / LOG_FILE, text)
        return self.store.take(found)

    def _load(self, found: Checkpoint) -> None:
        self.progress = found.progress
        teacher = found.state.get("teacher")
        if teacher and teacher != self.experiment.teacher:
            raise ValueError(
                f"distill.teacher={self.config.distill.teacher} has other weights than the teacher"
                f" of {found.folder}: restore them, or set resume=never"
            )
        steps = self.experiment.task.steps_per_epoch(self.config.batch_size)
        with found.refusing(), torch.no_grad():
            done, rest = divmod(self.progress.step, steps)
            # A signal after an epoch's last step stops a run before that epoch counts.
            if self.progress.epoch not in ([done] if rest else [done - 1, done]):
                raise ValueError(
                    f"it has step {self.progress.step} and epoch {self.progress.epoch}, but the"
                    f" data now make {steps} steps an epoch"
                )
            if stored := found.state.get("allocation"):
                install.take_scales(self.model, Allocation.from_dict(stored))
            self.model.load_state_dict(found.tensors("model"))
            saved = found.tensors("optimizer")
            for name, tensor in self._optimizer_tensors().items():
                tensor.copy_(saved[name])
            if self.averaged:
                self.averaged.load(found.tensors(AVERAGED))
            if scaler := self.experiment.precision.scaler:
                scaler.load_state_dict(found.state["scaler"])
            if found.state.get("ranks") == self.process.world:
                own = f"{self.process.rank}/"
                rng, meter = (
                    {k.removeprefix(own): v for k, v in stored.items() if k.startswith(own)}
                    for stored in map(found.tensors, ("rng", "meter"))
                )
                torch.set_rng_state(rng["cpu"])
                if "cuda" in rng and self.process.device.type == "cuda":
                    torch.cuda.set_rng_state(rng["cuda"], self.process.device)
                self.meter.load(meter)
        self._note_changes(found)

    def _note_changes(self, found: Checkpoint) -> None:
        """Record and warn if the checkpoint had other ranks or batch parts, or other code."""
        progress, code, before = self.progress, self.code, found.state.get("git")
        ranks, parts = self.process.world, self.config.trainer.grad_accum_steps
        old_ranks, old_parts = found.state.get("ranks", 1), parts_of(found.state["config"])[1]
        if (ranks, parts) != (old_ranks, old_parts):
            other = {"ranks": old_ranks, "grad_accum_steps": old_parts}
            progress.earlier.append({"steps": progress.step, **other})
            log.warning(
                f"the checkpoint is of another number of processes or parts ({old_ranks} x"
                f" {old_parts}, now {ranks} x {parts}): the resumed run is not bit-identical, and"
                " result.json records the change"
            )
        if code is not None and before is not None and before != code:
            progress.earlier_code.append({"steps": progress.step, **before})
            old, new = (
                f"{str(state['commit'])[:12]}{' with changes' if state['dirty'] else ''}"
                for state in (before, code)
            )
            log.warning(
                f"the checkpoint was written by other code (commit {old}, now {new}): the resumed"
                " run may not be bit-identical, and result.json records the change"
            )

    @contextlib.contextmanager
    def weights_of(self, step: int) -> Iterator[bool]:
        """Load a stored step's weights within a `with` block; yield whether they could be read."""
        found = False
        with restoring(self.model):
            if self.process.is_main:
                try:
                    load_weights(self.model, open_checkpoint(self.store.path(step)))
                    found = True
                except ValueError as error:
                    log.warning("the best epoch cannot be measured on the test set: %s", error)
            self.process.broadcast_all(self.model)
            yield self.process.from_leader(found)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }


def trained_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint, or a run's newest one. Raises ValueError for one of a search."""
    if (path / SEARCH).is_dir() and not (path / "checkpoints").is_dir():
        raise ValueError(f"{path} is still searching for its groups: finish its training first")
    found = find_checkpoint(path)
    if found.state.get("stage", TRAIN) == SEARCH:
        raise ValueError(f"{path} is the search for a run's groups: name the run's own folder")
    return found


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights, the averaged ones if it has them."""
    tensors = checkpoint.tensors("model")
    if checkpoint.has(AVERAGED):
        tensors |= checkpoint.tensors(AVERAGED)
    with checkpoint.refusing():
        model.load_state_dict(tensors)


def starts_again(config: Config) -> bool:
    """Return whether the run starts again and ignores its checkpoints."""
    return config.resume == "never" or (config.resume == "auto" and config.force)


def to_resume(config: Config, folder: Path, stage: str) -> Checkpoint | None:
    """Open the checkpoint that the training in `folder` resumes from; None if it starts.

    This is the folder's newest, or the one that `resume` names if the folder's newest was not
    resumed from it. Raises ValueError if the named one cannot be resumed.
    """
    if starts_again(config):
        return None
    own = None if config.force else Checkpoints(folder / "checkpoints").newest()
    if config.resume == "auto":
        return own
    origin = own.state.get("origin") if own else None
    if origin and _absolute(origin) == _absolute(config.resume):
        return own
    return named_checkpoint(config, stage)


def _absolute(path: str) -> str:
    return str(Path(path).resolve())


def named_checkpoint(config: Config, stage: str = TRAIN) -> Checkpoint | None:
    """Open the checkpoint that `config.resume` names; None if it is "auto" or "never".

    None also if the named run has not reached this stage.
    """
    if config.resume in ("auto", "never"):
        return None
    path = Path(config.resume)
    has_trained = (path / "checkpoints").is_dir()
    if (path / SEARCH).is_dir() and (stage == SEARCH or not has_trained):
        path = path / SEARCH
    found = find_checkpoint(path)
    refuse_another_config(config, found)
    return found if found.state.get("stage", TRAIN) == stage else None


def refuse_another_config(config: Config, found: Checkpoint) -> None:
    """Raise ValueError, naming the keys that differ, if a checkpoint is another config's.

    The number of processes and of batch parts may differ.
    """
    stored = found.state["config"]
    if found.state["config_hash"] == config_hash(in_parts(config, *parts_of(stored))):
        return
    ours, theirs = flat(to_dict(config)), flat(stored)
    differing = [
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not is_excluded(key) and key not in OF_PARTS
    ]
    raise ValueError(
        f"{found.folder} was trained with another config ({'; '.join(differing)}): "
        "set these keys as they are there, or resume=never"
    )
