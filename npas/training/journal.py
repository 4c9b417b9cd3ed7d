"""Record a training in its log, in W&B on request and on the terminal."""

from __future__ import annotations

import contextlib
import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from npas.config import DENSE, LOG_FILE
from npas.sharing.trained.layer_similarity import similarity
from npas.training.grouping import TRAIN
from npas.training.meter import Diverged, peak_memory_bytes
from npas.training.metrics import Norms, norms_at_divergence
from npas.training.state import ID_FILE, TrainState
from npas.training.tracking import Wandb, mode_of
from npas.utils.files import write_whole
from npas.utils.git import git_state
from npas.utils.json_data import finite, read_log
from npas.utils.progress import Bar

NO_METRICS: dict[str, Any] = {"last": {}, "selected": None, "selected_on": None}
Listener = Callable[[dict[str, Any]], object]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextlib.contextmanager
def listening(listeners: Iterable[Listener]) -> Iterator[None]:
    """Call each listener with every record logged in the block.

    The first exception of a listener is raised again at the end of the block.
    """
    raised: list[Exception] = []

    def call(record: dict[str, Any], listen: Listener) -> None:
        try:
            listen(record)
        except Exception as error:  # the run records it as its own failure
            raised.append(error)
            raise

    token = _listeners.set(tuple(partial(call, listen=listen) for listen in listeners))
    try:
        yield
    finally:
        _listeners.reset(token)
    if raised:
        raise raised[0]


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
    earlier_code: list[dict[str, Any]] = field(default_factory=list)


class Journal:
    """Record one training within a `with` block; only the main process writes.

    The log continues after its first `progress.logged` lines; later ones are dropped. The W&B run
    is `progress.wandb_id`, by default the folder's earlier one or a new one. `most_s` limits the
    training's time, including earlier parts; None means no limit.
    """

    def __init__(self, state: TrainState, steps_per_epoch: int, most_s: float | None) -> None:
        self.experiment, self.state = state.experiment, state
        is_shared = self.experiment.allocation is not None
        assert is_shared or state.config.budget == DENSE, "prepare shares a fit"
        self.steps_per_epoch = steps_per_epoch
        self.status = "failed"  # until `outcome` is called
        self.log: Any = None
        self.wandb: Wandb | None = None
        steps, is_main = self.experiment.epochs * steps_per_epoch, state.process.is_main
        left_s = math.inf if most_s is None else most_s - state.elapsed_s()
        self.bar = Bar("", steps, state.progress.step, lines=is_main, most_s=left_s)

    def __enter__(self) -> Journal:
        if not self.state.process.is_main:
            return self
        config, progress, run_dir = self.state.config, self.state.progress, self.state.run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        kept = read_log(run_dir / LOG_FILE, progress.logged)
        progress.logged = len(kept)
        write_whole(run_dir / LOG_FILE, "".join(f"{json.dumps(record)}\n" for record in kept))
        self.log = open(run_dir / LOG_FILE, "a", buffering=1)
        if mode_of(config) != "disabled":
            # Stored before the training, so that a killed run resumes under the same id.
            file = run_dir / ID_FILE
            stored = file.read_text(errors="replace").strip() if file.is_file() else ""
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", stored):  # a damaged file
                stored = secrets.token_hex(4)
            progress.wandb_id = progress.wandb_id or stored
            write_whole(file, f"{progress.wandb_id}\n")
            process, plan = self.state.process, self.experiment.allocation
            facts = {"git": asdict(git_state()), "ranks": process.world, "nodes": process.nodes}
            facts["parameters"] = None if plan is None else asdict(plan.budget)
            self.wandb = Wandb(config, run_dir, progress.wandb_id, facts)
        return self

    def report(self, figures: dict[str, float]) -> None:
        """Record figures of the current step in the log, in W&B and on the terminal."""
        step = self.state.progress.step
        record = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **figures}
        self._write(record)
        for listen in _listeners.get():
            listen(dict(record))
        if self.wandb is not None:
            self.wandb.call(lambda run: run.log(record))
        shown = {k: v for k, v in figures.items() if k.startswith(("train/", "val/"))}
        text = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
        self.bar.what = f"epoch {record['epoch']}  {text}"

    def compare_layers(self) -> None:
        """Record layer similarity matrices at the start and every `sharing.lsm_every` epochs."""
        experiment, progress = self.experiment, self.state.progress
        sharing = experiment.config.sharing
        compares = experiment.allocation is not None and experiment.stage == TRAIN
        if not compares or not sharing.lsm_every or sharing.is_structured:
            return
        if progress.epoch % sharing.lsm_every == 0 or progress.epoch == experiment.epochs:
            groups = [group.to_dict() for group in similarity(experiment.model)]
            self._write({"step": progress.step, "epoch": progress.epoch, "similarity": groups})

    def _write(self, record: dict[str, Any]) -> None:
        """Write a record to the log; a number that is not finite becomes null."""
        if self.log is not None:
            self.log.write(json.dumps(finite(record)) + "\n")
        self.state.progress.logged += 1

    def outcome(
        self, status: str, metrics: dict[str, Any] = NO_METRICS, reason: Diverged | None = None
    ) -> Outcome:
        """Conclude the records of a training and return its outcome."""
        state, progress, self.status = self.state, self.state.progress, status
        if self.wandb is not None:
            is_final = status == "done" and self.experiment.stage == TRAIN
            uploads = is_final and state.config.wandb.artifacts
            weights = state.store.path(progress.step) if uploads else None
            self.wandb.conclude(status, metrics, weights)
        memory, history = peak_memory_bytes(state.process.device), progress.history or None
        found = Outcome(
            status, metrics, progress.step, progress.epoch, state.elapsed_s(), memory,
            history=history, earlier=progress.earlier, earlier_code=progress.earlier_code,
        )  # fmt: skip
        if reason is None:
            return found
        norms = norms_at_divergence(state)
        return replace(found, error=str(reason), diverged_at=reason.step, norms=norms)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.bar.__exit__(kind, error, trace)
        if self.log is not None:
            self.log.close()
        if self.wandb is not None:
            self.wandb.close(exit_code=int(error is not None or self.status != "done"))
