"""Track a run in Weights & Biases, on request.

Result tables need only the run's own files. If W&B raises an error or takes too long, the run
continues without it, with one warning.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from npas.config import Config, flat, to_dict
from npas.training.grouping import SEARCH, TRAIN
from npas.training.state import AVERAGED
from npas.utils.checks import one_line
from npas.utils.git import PACKAGE_FOLDER

log = logging.getLogger(__name__)

# Seconds to wait for W&B:
START_S = 10.0  # before the training starts; W&B may start later
INIT_S = 30.0  # to reach the server: `init_timeout`, 90 s by default
FINISH_S = 20.0  # to send the rest at the end: `finish_timeout`, no limit by default
UPLOAD_S = 600.0  # to upload weights
PREEMPTED_S = 5.0  # at the end of a preempted run, which is killed soon after


def mode_of(config: Config) -> str:
    """Return W&B's mode: WANDB_MODE if set, else `wandb.mode`."""
    return os.environ.get("WANDB_MODE") or config.wandb.mode


class Wandb(threading.Thread):
    """A run of W&B, called in a thread of its own so that it can neither delay nor end a training.

    Whatever W&B raises, even SystemExit, is one warning.
    """

    def __init__(
        self, config: Config, run_dir: Path, run_id: str, facts: Mapping[str, Any]
    ) -> None:
        """Start or continue the W&B run `run_id`; `facts` are plain data for its config."""
        super().__init__(name="wandb", daemon=True)
        self.begin = partial(_begin, config, run_dir, run_id, facts)
        self.remedy = f"`wandb sync --include-online {run_dir / 'wandb'}/*run-*`"
        self.patience_s = FINISH_S
        self.has_warned = False
        self.calls: queue.SimpleQueue[Callable[[Any], object] | None] = queue.SimpleQueue()
        self.has_begun = threading.Event()
        try:
            # Not in the thread: a data worker forked during an import may wait for it forever.
            import_module("wandb")
        except Exception as error:
            self._warn(error)
            return
        self.start()
        self.has_begun.wait(START_S)
        # Plot over our own step count: W&B would drop repeated steps.
        self.call(lambda run: run.define_metric("*", step_metric="step"))

    def call(self, call: Callable[[Any], object]) -> None:
        """Call a function with the W&B run after the earlier ones; do not wait for it."""
        if self.is_alive():
            self.calls.put(call)

    def conclude(self, status: str, metrics: Mapping[str, Any], weights: Path | None) -> None:
        """Set the run's summary and upload a checkpoint's weights, if any.

        {"last": {"accuracy": 98.0}} becomes "last/accuracy".
        """
        named = {k.replace(".", "/"): v for k, v in flat(metrics).items() if v is not None}
        self.call(lambda run: run.summary.update({**named, "status": status}))
        if weights is not None:
            self.patience_s += UPLOAD_S
            self.call(lambda run: _upload(run, weights))
        if status == "preempted":
            self.patience_s = PREEMPTED_S
            self.call(lambda run: run.mark_preempting())

    def close(self, exit_code: int) -> None:
        """End the W&B run and wait for it, but not longer than `patience_s`."""
        self.call(lambda run: run.finish(exit_code=exit_code))
        if self.is_alive():
            self.calls.put(None)
            self.join(self.patience_s)
        if self.is_alive():
            self._warn(f"not all was sent in {self.patience_s:g} s: {self.remedy}")
        self.has_warned = True  # no warnings after the command's last line

    def run(self) -> None:
        try:
            run = self.begin()
        except BaseException as error:  # no key, no network, a full disk, a changed interface
            self._warn(error)
            return
        finally:
            self.has_begun.set()
        for call in iter(self.calls.get, None):
            try:
                call(run)
            except BaseException as error:
                self._warn(error)

    def _warn(self, why: BaseException | str) -> None:
        if not self.has_warned:
            self.has_warned = True
            log.warning("continuing without wandb: %s", one_line(why) or type(why).__name__)


def _begin(config: Config, run_dir: Path, run_id: str, facts: Mapping[str, Any]) -> Any:
    """Start or continue the W&B run of this id, and return it.

    Online, a run of the same id is resumed. Offline, each process leaves its part of the run in
    `wandb/offline-run-*`, and `wandb sync` appends the parts in order. Steps repeated after a kill
    are in both parts, with the same figures. W&B's "Stop run" sends SIGINT: the run is saved and
    can be resumed.
    """
    import wandb

    # Print errors only. W&B then does not ask for a key either.
    quiet: dict[str, Any] = {"quiet": True, "show_info": False}
    wandb.setup(wandb.Settings(**quiet))
    settings = wandb.Settings(
        **quiet,
        console="off",
        init_timeout=INIT_S,
        finish_timeout=FINISH_S,
        finish_timeout_raises=True,
    )
    if commit := facts["git"]["commit"]:  # else W&B takes the current folder's
        settings.git_commit = commit
        settings.git_root = str(PACKAGE_FOLDER.parent)
    searches = run_dir.name == SEARCH
    mode: Any = mode_of(config)
    run = wandb.init(
        mode=mode,
        project=config.wandb.project,
        entity=config.wandb.entity,
        group=config.wandb.group or config.exp,
        job_type=SEARCH if searches else TRAIN,
        name=f"{run_dir.parent.name}/{SEARCH}" if searches else run_dir.name,
        tags=config.wandb.tags,
        config={**to_dict(config), "facts": facts},
        dir=run_dir,
        id=run_id,
        resume="allow",
        reinit="create_new",  # do not reuse another run of this process
        settings=settings,
    )
    if not run.offline:
        log.info("tracked at %s", run.url)
    return run


def _upload(run: Any, checkpoint: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    for name in ("model", AVERAGED):
        if (file := checkpoint / f"{name}.safetensors").exists():
            artifact.add_file(str(file), policy="immutable")  # no copy: it does not change
    logged = run.log_artifact(artifact)
    if not run.offline:
        logged.wait(timeout=int(UPLOAD_S))
