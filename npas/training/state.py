"""Gather all that a training must remember to go on to the bit, and put it back.

Data needs nothing here: batches follow from (seed, epoch, step). The rate follows from the step.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npas import models
from npas.config import OF_PARTS, Config, config_hash, in_parts, is_excluded, run_dir, to_dict
from npas.config.groups_file import GROUPS_FILE
from npas.sharing import Allocation, api, install
from npas.tasks.common.files import write_whole
from npas.training.averaging import AveragedWeights
from npas.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    check_tensor,
    find_checkpoint,
    open_checkpoint,
)
from npas.training.checks import Length, check_counts, check_scaler, flat, read_progress
from npas.training.grouping import from_dict
from npas.training.meter import Meter
from npas.training.precision import Precision

if TYPE_CHECKING:
    from npas.training.experiment import Experiment

log = logging.getLogger(__name__)

SEARCH, TRAIN = "search", "train"  # the stages of a run; most runs have the last alone
LOG_FILE = "log.jsonl"
ID_FILE = "wandb_id"  # under which W&B tracks the run
AVERAGED = "averaged"  # the file of averaged weights in a checkpoint


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # whole epochs done, measured and saved
    logged: int = 0  # lines of the log, in this stage
    elapsed_s: float = 0.0  # in all the processes that worked on this run
    metrics: dict[str, float] | None = None  # of the last epoch, on held-out data
    best: dict[str, Any] | None = None  # step, epoch and metrics of the best epoch on that data
    history: dict[str, list[float]] = field(default_factory=dict)  # a column a metric of that data
    wandb_id: str | None = None
    # Stretches of the run whose batches were shared out in another way, up to which step each.
    earlier: list[dict[str, int]] = field(default_factory=list)


class TrainState:
    """Tie a training's moving parts together, to be saved at any step and restored."""

    def __init__(
        self,
        experiment: Experiment,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        run_dir: Path,
    ) -> None:
        self.config = experiment.config
        self.stage = experiment.stage
        self.grouping = experiment.grouping
        self.process = experiment.process
        self.task, self.epochs = experiment.task, experiment.epochs
        self.model = experiment.model
        self.architecture = models.architecture_of(self.config.model, self.model)
        self.optimizer = optimizer
        self.precision = precision
        self.meter = Meter(self.process)
        decay = self.config.optim.ema_decay
        averages = decay > 0 and self.stage == TRAIN
        self.averaged = AveragedWeights(self.model, decay) if averages else None
        self.run_dir = run_dir
        folder = checkpoints_folder(run_dir, self.stage)
        self.store = Checkpoints(folder, self.config.trainer.keep_last)
        self.progress = Progress()
        self.origin: str | None = None  # the path that `resume` named, if it came from there
        self.since = time.perf_counter()

    def elapsed_s(self) -> float:
        """Return the seconds that this training has taken, in all the processes it had."""
        return self.progress.elapsed_s + time.perf_counter() - self.since

    def save(self) -> None:
        """Write a checkpoint of this moment; Diverged if a step has gone wrong before it."""
        self.meter.check()
        ranks = self.process.gather({"rng": self._rng_tensors(), "meter": self.meter.tensors()})
        self.progress.elapsed_s, self.since = self.elapsed_s(), time.perf_counter()
        if not self.process.is_main:
            return
        scaler = self.precision.scaler
        state = {
            "progress": asdict(self.progress),
            "config": to_dict(self.config),
            "config_hash": config_hash(self.config),
            "scaler": scaler.state_dict() if scaler else None,
            "stage": self.stage,
            "grouping": self.grouping.to_dict() if self.grouping else None,
            "allocation": self._allocation(),
            "architecture": self.architecture,
            "ranks": self.process.world,
            "origin": self.origin,
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

    def newest_folder(self) -> Path:
        """Return the folder of the checkpoint of this step."""
        return self.store.path(self.progress.step)

    def resume(self) -> bool:
        """Restore what `config.resume` asks for, if it is there; say whether anything was.

        ValueError if it is the checkpoint of another config, with the keys that differ.
        """
        found: Checkpoint | None = None
        with self.process.together():
            if self.process.is_main:
                found = self._find()
        folder = self.process.from_leader(found.folder if found else None)
        if folder is None:
            return False
        with self.process.together():
            found = found or open_checkpoint(folder)
            self._load(found)
        if self.process.is_main:
            self.store.clear(after=self.progress.step)
            if folder.parent != self.store.folder:
                self.store.adopt(found)
                self._take_over_log(folder)
            self._keep_best(folder.parent)
            log.info("resuming from %s, after step %d", folder, self.progress.step)
        self.progress.best = self.process.from_leader(self.progress.best)
        return True

    def _take_over_log(self, folder: Path) -> None:
        """Start the log with that of the run whose checkpoint is resumed."""
        self.progress.wandb_id = None  # which tracks the other
        for run in folder.parents[:3]:
            if (run / LOG_FILE).is_file():
                write_whole(self.run_dir / LOG_FILE, (run / LOG_FILE).read_text(errors="replace"))
                return
        self.progress.logged = 0

    def _keep_best(self, source: Path) -> None:
        """See that the best step's checkpoint is here for the end; without it none was best."""
        best = self.progress.best
        if best is None:
            return
        try:
            if source != self.store.folder and not self.store.path(best["step"]).exists():
                self.store.adopt(Checkpoints(source).at(best["step"]))
            self.store.at(best["step"])
        except ValueError as error:
            log.warning("the best epoch so far is lost, and chosen among those to come: %s", error)
            self.progress.best = None

    def _find(self) -> Checkpoint | None:
        if starts_anew(self.config):
            self.store.clear()
            if self.grouping is None:  # after a search the run is tracked already
                (self.run_dir / ID_FILE).unlink(missing_ok=True)
            return None
        is_own = self.config.resume == "auto" or descends(self.config, self.run_dir)
        found = self.store.newest() if is_own else named_checkpoint(self.config, self.stage)
        self.origin = None if self.config.resume == "auto" else str(Path(self.config.resume))
        if found is None:
            return None
        found = self.store.settle(found)
        self.origin = self.origin or found.state.get("origin")
        refuse_another_config(self.config, found)
        stored = found.state.get("grouping")
        if self.grouping and stored and from_dict(stored).groups != self.grouping.groups:
            raise ValueError(
                f"{found.folder} was trained with other groups than the run's {GROUPS_FILE} has: "
                "delete that file, or set resume=never"
            )
        return found

    def _allocation(self) -> dict[str, Any] | None:
        """Return who shares what: `build` makes the same network of it whatever it would plan."""
        return api.allocation(self.model).to_dict() if install.is_shared(self.model) else None

    def _load(self, found: Checkpoint) -> None:
        length = Length(self.epochs, self.task.steps_per_epoch(self.config.batch_size))
        metric = f"val/{self.task.selection_metric}"
        progress = read_progress(found, Progress, length, metric)
        if stored := found.state.get("allocation"):
            try:
                install.take_scales(self.model, Allocation.from_dict(stored))
            except ValueError as error:
                raise ValueError(f"{found.folder} cannot be resumed: {error}") from None
        own = self._optimizer_tensors()
        saved = found.tensors("optimizer", own)
        weights = self.model.state_dict()
        self.model.load_state_dict(found.tensors("model", weights))
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        if self.averaged:
            averages = {name: weights[name] for name in self.averaged.tensors}
            self.averaged.load(found.tensors(AVERAGED, averages))
        if scaler := self.precision.scaler:
            with found.refusing():
                scaler.load_state_dict(check_scaler(found.state["scaler"], scaler.state_dict()))
        self.progress = progress
        if found.state.get("ranks") == self.process.world:
            for kind, load in (("rng", self._load_rng), ("meter", self._load_meter)):
                start = f"{self.process.rank}/"
                tensors = found.tensors(kind).items()
                with found.refusing():
                    load({k.removeprefix(start): v for k, v in tensors if k.startswith(start)})
        self._note_other_parts(found)

    def _note_other_parts(self, found: Checkpoint) -> None:
        """Record, and warn, if the checkpoint's batches were shared out in another way."""
        ours = self.process.world, self.config.trainer.grad_accum_steps
        theirs = found.state.get("ranks", 1), _parts_of(found)[1]
        if ours == theirs:
            return
        step = self.progress.step
        self.progress.earlier.append(
            {"steps": step, "ranks": theirs[0], "grad_accum_steps": theirs[1]}
        )
        if self.process.is_main:
            log.warning(
                "the checkpoint is of another number of processes or parts (%d x %d, now %d x %d):"
                " the run goes on, but not to the bit as it would have, and result.json records it",
                *theirs,
                *ours,
            )

    @contextlib.contextmanager
    def weights_to_measure(self) -> Iterator[None]:
        """Put the weights to be measured, averaged ones if there are any, into the network."""
        with self.averaged.in_place() if self.averaged else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def weights_of(self, step: int) -> Iterator[bool]:
        """Put a stored step's weights into the network; yield whether they could be read."""
        last = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        averaged, self.averaged = self.averaged, None
        found = False
        try:
            if self.process.is_main:
                try:
                    load_weights(self.model, self.store.at(step))
                    found = True
                except ValueError as error:
                    log.warning("the best epoch cannot be measured on the test set: %s", error)
            self.process.share_all(self.model)
            yield self.process.from_leader(found)
        finally:
            self.averaged = averaged
            self.model.load_state_dict(last)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the names of the optimizer's own tensors after the parameters they belong to."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _rng_tensors(self) -> dict[str, Tensor]:
        tensors = {"cpu": torch.get_rng_state()}
        if self.process.device.type == "cuda":
            tensors["cuda"] = torch.cuda.get_rng_state(self.process.device)
        return tensors

    def _load_rng(self, tensors: dict[str, Tensor]) -> None:
        for name, like in self._rng_tensors().items():
            if name != "cuda" or name in tensors:  # it may have been trained without a GPU
                check_tensor(tensors.get(name), like, f"state of random numbers ({name})")
        try:
            torch.set_rng_state(tensors["cpu"])
            if "cuda" in tensors and self.process.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["cuda"], self.process.device)
        except RuntimeError as error:
            raise ValueError(f"its state of random numbers is none: {error}") from None

    def _load_meter(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            like = torch.zeros((), dtype=torch.float64)
            check_tensor(
                tensor, torch.zeros(2, dtype=torch.int64) if name == "counts" else like, name
            )
        check_tensor(tensors.get("counts"), torch.zeros(2, dtype=torch.int64), "counts")
        check_counts(tensors["counts"], self.progress)
        self.meter.load(tensors)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Give the network a checkpoint's weights: the averaged ones where it has them."""
    own = model.state_dict()
    tensors = checkpoint.tensors("model", own)
    if checkpoint.has(AVERAGED):
        averaged = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
        tensors |= checkpoint.tensors(AVERAGED, averaged)
    model.load_state_dict(tensors)


def checkpoints_folder(run_dir: Path, stage: str) -> Path:
    """Return where a stage of a run keeps its checkpoints."""
    return run_dir / SEARCH / "checkpoints" if stage == SEARCH else run_dir / "checkpoints"


def descends(config: Config, run_dir: Path) -> bool:
    """Return whether the run has already gone on from the path that `resume` names."""
    if config.resume in ("auto", "never") or config.force:
        return False
    stores = (Checkpoints(checkpoints_folder(run_dir, stage)) for stage in (TRAIN, SEARCH))
    newest = next((found for store in stores if (found := store.newest())), None)
    return newest is not None and newest.state.get("origin") == str(Path(config.resume))


def starts_anew(config: Config) -> bool:
    """Return whether the run is to forget what it has done so far."""
    return config.resume == "never" or (config.resume == "auto" and config.force)


def resumed_from(config: Config, stage: str = TRAIN) -> Checkpoint | None:
    """Open the checkpoint from which the run's training goes on; None if it is to begin."""
    if starts_anew(config):
        return None
    if config.resume == "auto" or descends(config, run_dir(config)):
        return Checkpoints(checkpoints_folder(run_dir(config), stage)).newest()
    return named_checkpoint(config, stage)


def named_checkpoint(config: Config, stage: str = TRAIN) -> Checkpoint | None:
    """Open the checkpoint that `config.resume` names; None if it is auto or never.

    None also if what it names has not come beyond the stage before. ValueError if there is none
    that can be read, or if it is another config's.
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
    """ValueError, with the keys that differ, if a checkpoint is another config's.

    It may be of another number of processes, or of parts of a batch.
    """
    # Of checkpoints that are older than this rule the parts did not enter the hash.
    same = (in_parts(config, *parts) for parts in (_parts_of(found), (1, 1)))
    if found.state["config_hash"] in {config_hash(config), *map(config_hash, same)}:
        return
    ours, theirs = flat(to_dict(config)), flat(found.state["config"])
    differing = [
        f"{key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not is_excluded(key) and key not in OF_PARTS
    ]
    why = "; ".join(differing) or "by its config_hash"
    raise ValueError(
        f"{found.folder} was trained with another config ({why}): "
        "set these keys as they are there, or resume=never"
    )


def _parts_of(found: Checkpoint) -> tuple[int, int]:
    """Return `trainer.devices` and `trainer.grad_accum_steps` of a checkpoint's config."""
    trainer = found.state["config"].get("trainer", {})
    return trainer.get("devices", 1), trainer.get("grad_accum_steps", 1)
