"""Track a run in Weights & Biases, on request.

Result tables need only the run's own files. If W&B fails, the run continues, with one warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from npas.config import Config, flat, to_dict
from npas.training.grouping import SEARCH, TRAIN
from npas.training.state import AVERAGED
from npas.utils.checks import one_line
from npas.utils.git import PACKAGE_FOLDER

log = logging.getLogger(__name__)

# W&B's own limits, in seconds; by default 90, none and none:
INIT_S = 30  # to reach the server
FINISH_S = 20.0  # to send the rest at the end
UPLOAD_S = 600  # to upload weights


def mode_of(config: Config) -> str:
    """Return W&B's mode: WANDB_MODE if set, else `wandb.mode`."""
    return os.environ.get("WANDB_MODE") or config.wandb.mode


class Wandb:
    """A run of W&B. Whatever W&B raises, even SystemExit, is one warning."""

    def __init__(
        self, config: Config, run_dir: Path, run_id: str, facts: Mapping[str, Any]
    ) -> None:
        """Start or continue the W&B run `run_id`; `facts` are plain data for its config."""
        self.folder = run_dir / "wandb"
        self.run: Any = None
        self.has_warned = False
        with self._warning():
            self.run = _begin(config, run_dir, run_id, facts)
        # Plot over our own step count: W&B would drop repeated steps.
        self.call(lambda run: run.define_metric("*", step_metric="step"))

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            if not self.has_warned:
                why = one_line(error) or type(error).__name__
                if next(self.folder.glob("*run-*"), None) is not None:
                    why += f"; later: `wandb sync --include-online {self.folder}/*run-*`"
                log.warning("continuing without wandb: %s", why)
            self.has_warned = True

    def call(self, call: Callable[[Any], object]) -> None:
        """Call a function with the W&B run, if it has begun."""
        with self._warning():
            if self.run is not None:
                call(self.run)

    def conclude(self, status: str, metrics: Mapping[str, Any], weights: Path | None) -> None:
        """Set the run's summary and upload a checkpoint's weights, if any.

        {"last": {"accuracy": 98.0}} becomes "last/accuracy".
        """
        named = {k.replace(".", "/"): v for k, v in flat(metrics).items() if v is not None}
        self.call(lambda run: run.summary.update({**named, "status": status}))
        if weights is not None:
            self.call(lambda run: _upload(run, weights))
        if status == "preempted":
            self.call(lambda run: run.mark_preempting())

    def close(self, exit_code: int) -> None:
        self.call(lambda run: run.finish(exit_code=exit_code))


def _begin(config: Config, run_dir: Path, run_id: str, facts: Mapping[str, Any]) -> Any:
    """Start or continue the W&B run of this id, and return it.

    Online, a run of the same id is resumed. Offline, each process leaves its part of the run in
    `wandb/offline-run-*`, and `wandb sync` appends them in order; steps repeated after a kill are
    in both, with the same figures. W&B's "Stop run" sends SIGINT: the run is saved.
    """
    import wandb

    # Print errors only. W&B then does not ask for a key either.
    quiet: dict[str, Any] = {"quiet": True, "show_info": False}
    wandb.setup(wandb.Settings(**quiet))
    limits: dict[str, Any] = {"init_timeout": INIT_S, "finish_timeout": FINISH_S}
    settings = wandb.Settings(**quiet, **limits, finish_timeout_raises=True, console="off")
    if commit := facts["git"]["commit"]:  # else W&B takes the current folder's
        settings.git_commit = commit
        settings.git_root = str(PACKAGE_FOLDER.parent)
    searches = run_dir.name == SEARCH
    mode: Any = mode_of(config)
    run = wandb.init(
        mode=mode, project=config.wandb.project, entity=config.wandb.entity,
        group=config.wandb.group or config.exp, job_type=SEARCH if searches else TRAIN,
        name=f"{run_dir.parent.name}/{SEARCH}" if searches else run_dir.name,
        tags=config.wandb.tags, config={**to_dict(config), "facts": facts}, dir=run_dir, id=run_id,
        resume="allow", reinit="create_new",  # do not reuse another run of this process
        settings=settings,
    )  # fmt: skip
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
        logged.wait(timeout=UPLOAD_S)
