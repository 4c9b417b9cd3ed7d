"""Report a training to the log, the trackers and the terminal. Only the main process writes."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from npas.config import DENSE
from npas.sharing.trained.layer_similarity import similarity
from npas.training.grouping import TRAIN
from npas.training.meter import Diverged, peak_memory_bytes
from npas.training.metrics import Norms, norms_at_divergence
from npas.training.state import TrainState
from npas.training.tracking import Tracker
from npas.utils.git import git_state
from npas.utils.progress import Bar

NO_METRICS: dict[str, Any] = {"last": {}, "selected": None, "selected_on": None}


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    status: str  # "done", "diverged", "preempted" or "failed"
    metrics: dict[str, Any]  # last: of the last epoch; selected: of the one chosen by selected_on
    steps: int
    epochs: int
    wall_s: float  # including earlier, resumed parts of the run
    peak_memory_bytes: int  # of this process
    error: str | None = None
    history: dict[str, list[float]] | None = None  # held-out metrics, one value per epoch
    diverged_at: int | None = None  # the step
    norms: Norms | None = None  # of all parameters at divergence
    earlier: list[dict[str, int]] = field(default_factory=list)  # see `Progress`


class Journal(contextlib.ExitStack):
    """Record one training within a `with` block."""

    def __init__(self, state: TrainState, steps_per_epoch: int) -> None:
        super().__init__()
        experiment, process, progress = state.experiment, state.process, state.progress
        plan = experiment.allocation
        assert plan or experiment.config.budget == DENSE, "prepare shares a fit"
        self.experiment = experiment
        self.state = state
        self.steps_per_epoch = steps_per_epoch
        facts = {
            "git": asdict(git_state()),
            "ranks": process.world,
            "nodes": process.nodes,
            "parameters": None if plan is None else asdict(plan.budget),
        }
        self.tracker = Tracker(
            experiment.config,
            state.run_dir,
            progress.logged,
            progress.wandb_id,
            is_main=process.is_main,
            facts=facts,
        )
        progress.wandb_id = self.tracker.wandb_id
        total = experiment.epochs * steps_per_epoch
        self.bar = Bar("", total, progress.step, lines=process.is_main)

    def __enter__(self) -> Journal:
        self.enter_context(self.tracker)
        self.enter_context(self.bar)
        return self

    def report(self, figures: dict[str, float]) -> None:
        progress = self.state.progress
        epoch = round(progress.step / self.steps_per_epoch, 4)
        self.tracker.log({"step": progress.step, "epoch": epoch, **figures})
        progress.logged = self.tracker.lines
        shown = {k: v for k, v in figures.items() if k.startswith(("train/", "val/"))}
        text = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
        self.bar.what = f"epoch {epoch}  {text}"

    def compare_layers(self) -> None:
        """Record layer similarity matrices at the start and every `sharing.lsm_every` epochs."""
        experiment, progress = self.experiment, self.state.progress
        sharing = experiment.config.sharing
        if not sharing.lsm_every or sharing.is_structured:
            return
        if experiment.allocation is None or experiment.stage != TRAIN:
            return
        if progress.epoch % sharing.lsm_every == 0 or progress.epoch == experiment.epochs:
            groups = [group.to_dict() for group in similarity(experiment.model)]
            record = {"step": progress.step, "epoch": progress.epoch, "similarity": groups}
            self.tracker.write(record)
            progress.logged = self.tracker.lines

    def outcome(
        self, status: str, metrics: dict[str, Any] = NO_METRICS, reason: Diverged | None = None
    ) -> Outcome:
        """Close the records of a training and return its outcome."""
        state, progress = self.state, self.state.progress
        self.tracker.summarize(metrics)
        if status == "done" and self.experiment.stage == TRAIN:
            self.tracker.upload(state.store.path(progress.step))
        self.tracker.ended(status)
        memory, history = peak_memory_bytes(state.process.device), progress.history or None
        found = Outcome(
            status, metrics, progress.step, progress.epoch, state.elapsed_s(), memory,
            history=history, earlier=progress.earlier,
        )  # fmt: skip
        if reason is None:
            return found
        norms = norms_at_divergence(state)
        return replace(found, error=str(reason), diverged_at=reason.step, norms=norms)
