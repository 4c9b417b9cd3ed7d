"""Track a run: in `log.jsonl` always, in Weights & Biases on request.

Result tables need only the run's own files. If another tracker raises an error, or W&B takes too
long, one warning is logged and the run continues without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

from npas.config import LOG_FILE, Config, flat, to_dict
from npas.tasks.common.files import write_whole
from npas.training.grouping import SEARCH, TRAIN
from npas.training.state import AVERAGED, ID_FILE
from npas.utils.checks import one_line
from npas.utils.git import PACKAGE_FOLDER
from npas.utils.json_data import read_log

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


class Tracker:
    """Write a run's log records, dicts of plain numbers with a "step", to its log and W&B."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        logged: int,
        wandb_id: str | None,
        *,
        is_main: bool = True,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Continue after the log's first `logged` lines, dropping later ones.

        `wandb_id` is the W&B run to resume; by default it is the folder's earlier one, or a new
        one. `facts` are plain data for W&B's config. With `is_main=False` lines are counted and
        nothing is written.
        """
        self.lines = logged
        self.wandb_id = wandb_id
        self.status = "failed"  # until `ended` is called
        self.config = config
        self.file: Any = None
        self.wandb: _Wandb | None = None
        if not is_main:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / LOG_FILE
        kept = read_log(path, logged)
        write_whole(path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self.lines = len(kept)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (open for the run's length)
        mode = mode_of(config)
        if mode != "disabled":
            # Stored before the training, so that a killed run resumes under the same id.
            self.wandb_id = wandb_id or _stored_id(run_dir) or secrets.token_hex(4)
            write_whole(run_dir / ID_FILE, f"{self.wandb_id}\n")
            start = partial(_start_wandb, mode, config, run_dir, self.wandb_id, dict(facts or {}))
            remedy = f"`wandb sync --include-online {run_dir / 'wandb'}/*run-*`"
            self.wandb = _Wandb(start, remedy)
            # Plot over our own step count: W&B would drop repeated steps.
            self._call_wandb(lambda run: run.define_metric("*", step_metric="step"))

    def log(self, record: dict[str, Any]) -> None:
        """Write a record to the log and W&B; a number that is not finite becomes null."""
        self.write(record)
        for listen in _listeners.get():
            listen(dict(record))
        self._call_wandb(lambda run: run.log(record))

    def write(self, record: dict[str, Any]) -> None:
        if self.file is not None:
            infinite = (k for k, v in record.items() if isinstance(v, float) and not isfinite(v))
            self.file.write(json.dumps(record | dict.fromkeys(infinite)) + "\n")
        self.lines += 1

    def summarize(self, figures: Mapping[str, Any]) -> None:
        """Set the run's summary in W&B; {"last": {"accuracy": 98.0}} becomes "last/accuracy"."""
        named = {k.replace(".", "/"): v for k, v in flat(figures).items() if v is not None}
        self._call_wandb(lambda run: run.summary.update(named))

    def upload(self, checkpoint: Path) -> None:
        """Upload a checkpoint's weights to W&B, if `wandb.artifacts` asks for it."""
        if self.wandb is not None and self.config.wandb.artifacts:
            self.wandb.patience_s += UPLOAD_S
            self._call_wandb(lambda run: _upload(run, checkpoint))

    def ended(self, status: str) -> None:
        self.status = status
        self.summarize({"status": status})
        if status == "preempted" and self.wandb is not None:
            self._call_wandb(lambda run: run.mark_preempting())
            self.wandb.patience_s = PREEMPTED_S

    def _call_wandb(self, call: Callable[[Any], object]) -> None:
        if self.wandb is not None:
            self.wandb.call(call)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.wandb is not None:
            exit_code = int(error is not None or self.status != "done")
            self.wandb.close(lambda run: run.finish(exit_code=exit_code))


class _Wandb(threading.Thread):
    """Call W&B in a thread of its own, so that it can neither delay nor end a training.

    `begin` returns the W&B run with which the later calls are made. Whatever they raise, even
    SystemExit, is one warning.
    """

    def __init__(self, begin: Callable[[], Any], remedy: str) -> None:
        super().__init__(name="wandb", daemon=True)
        self.begin, self.remedy = begin, remedy
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

    def call(self, call: Callable[[Any], object]) -> None:
        if self.is_alive():
            self.calls.put(call)

    def close(self, finish: Callable[[Any], object]) -> None:
        """Make the last call and wait for it, but not longer than `patience_s`."""
        if self.is_alive():
            self.calls.put(finish)
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


def _start_wandb(
    mode: Any, config: Config, run_dir: Path, run_id: str, facts: dict[str, Any]
) -> Any:
    """Start or continue the W&B run of this id.

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
    if commit := facts.get("git", {}).get("commit"):  # else W&B takes the current folder's
        settings.git_commit = commit
        settings.git_root = str(PACKAGE_FOLDER.parent)
    searches = run_dir.name == SEARCH
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


def _stored_id(run_dir: Path) -> str | None:
    """Return the W&B id stored in the run's folder; None if there is no valid one."""
    file = run_dir / ID_FILE
    found = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
    return found if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else None
