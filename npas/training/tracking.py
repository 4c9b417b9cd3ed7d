"""Track a run: `log.jsonl` always; Weights & Biases, TensorBoard and a CSV file on request.

Result tables need only the run's own files. If another tracker raises an error, or W&B takes too
long, one warning is logged and the run continues without it.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from npas.config import Config, to_dict
from npas.tasks.common.files import write_whole
from npas.training import listening
from npas.training.grouping import SEARCH, TRAIN
from npas.training.state import AVERAGED, ID_FILE, LOG_FILE
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
    if "wandb" not in config.trackers:
        return "disabled"
    return os.environ.get("WANDB_MODE") or config.wandb.mode


class Tracker:
    """Write a run's log records, dicts of plain numbers with a "step", to all its trackers."""

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
        self.uploads = config.wandb.artifacts
        self.file: Any = None
        self.wandb: _Wandb | None = None
        self.tensorboard: _TensorBoard | None = None
        self.csv = "csv" in config.trackers
        if not is_main:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / LOG_FILE
        before, own = _first_lines(path, logged)
        kept = path.with_suffix(".tmp")
        kept.write_bytes(b"".join([*(before if logged else ()), *own]))
        os.replace(kept, path)
        self.lines = len(own)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (open for the run's length)
        if "tensorboard" in config.trackers:
            last = json.loads(own[-1])["step"] if own else -1
            self.tensorboard = _TensorBoard(run_dir / "tensorboard", last + 1)
        mode = mode_of(config)
        if mode != "disabled":
            # Stored before the training, so that a killed run resumes under the same id.
            self.wandb_id = wandb_id or _stored_id(run_dir) or secrets.token_hex(4)
            try:
                write_whole(run_dir / ID_FILE, f"{self.wandb_id}\n")
            except OSError as error:
                log.warning("W&B cannot resume this run: %s: %s", ID_FILE, error.strerror)
            self.wandb = _Wandb(mode, config, run_dir, self.wandb_id, dict(facts or {}))

    def log(self, record: dict[str, Any]) -> None:
        """Write a record to all trackers; a number that is not finite becomes null."""
        self.write(record)
        listening.notify(record)
        self._call_wandb(lambda run: run.log(record))
        if self.tensorboard is not None:
            self.tensorboard.log(record)

    def write(self, record: dict[str, Any]) -> None:
        """Write a record to the log only."""
        if self.file is not None:
            self.file.write(json.dumps({k: _jsonable(v) for k, v in record.items()}) + "\n")
        self.lines += 1

    def summarize(self, figures: Mapping[str, Any]) -> None:
        """Set the run's summary in W&B; {"last": {"accuracy": 98.0}} becomes "last/accuracy"."""
        flat: dict[str, Any] = {}
        for key, value in figures.items():
            if isinstance(value, Mapping):
                flat |= {f"{key}/{name}": figure for name, figure in value.items()}
            elif value is not None:
                flat[key] = value
        self._call_wandb(lambda run: run.summary.update(flat))

    def upload(self, checkpoint: Path) -> None:
        """Upload a checkpoint's weights to W&B, if `wandb.artifacts` asks for it."""
        if self.wandb is not None and self.uploads:
            self.wandb.patience_s += UPLOAD_S
            self._call_wandb(lambda run: _upload(run, checkpoint))

    def ended(self, status: str) -> None:
        """Record how the run ended: done, diverged, failed or preempted."""
        self.status = status
        self.summarize({"status": status})
        if status == "preempted" and self.wandb is not None:
            self._call_wandb(lambda run: run.mark_preempting())
            self.wandb.patience_s = PREEMPTED_S

    def _call_wandb(self, call: Callable[[Any], object]) -> None:
        if self.wandb is not None and self.wandb.thread.is_alive():
            self.wandb.calls.put(call)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.file is not None:
            self.file.close()
            if self.csv:
                _write_csv(Path(self.file.name))
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.close(exit_code=int(error is not None or self.status != "done"))


class _TensorBoard:
    """Write event files for TensorBoard; an error is logged as one warning."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open the writer; earlier events from `first_step` on, of a resumed run, are purged."""
        self.writer: Any = None
        try:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=first_step or None)
        except Exception as error:
            self._warn(error)

    def log(self, record: Mapping[str, Any]) -> None:
        """Write a record's numbers at its step."""
        self._call(
            lambda writer: [
                writer.add_scalar(name, value, record["step"])
                for name, value in record.items()
                if name != "step" and isinstance(value, (int, float))
            ]
        )

    def close(self) -> None:
        """Flush and close the files."""
        self._call(lambda writer: writer.close())

    def _call(self, call: Callable[[Any], object]) -> None:
        try:
            if self.writer is not None:
                call(self.writer)
        except Exception as error:  # a full disk, a changed interface
            self.writer = None
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        missing = isinstance(error, ImportError)
        why = "pip install 'npas[tensorboard]'" if missing else " ".join(str(error).split())
        log.warning("continuing without tensorboard: %s", why)


def _write_csv(path: Path) -> None:
    """Write a log's numbers to log.csv in its folder: a row per record, a column per name."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(name for record in records for name in record))
    names = [
        name for name in names if not any(isinstance(r.get(name), (list, dict)) for r in records)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    try:
        write_whole(path.with_suffix(".csv"), text.getvalue())
    except OSError as error:
        log.warning("%s could not be written: %s", path.with_suffix(".csv"), error.strerror)


class _Wandb:
    """Call W&B in a thread of its own, so that it can neither delay nor end a training.

    Online, a run of the same id is resumed. Offline, each process leaves its part of the run in
    `wandb/offline-run-*`, and `wandb sync` appends the parts in order. Steps repeated after a kill
    are in both parts, with the same figures.

    W&B's "Stop run" sends SIGINT: the run is saved and can be resumed.
    """

    def __init__(
        self, mode: str, config: Config, run_dir: Path, run_id: str, facts: dict[str, Any]
    ) -> None:
        self.patience_s = FINISH_S
        self.folder = run_dir / "wandb"
        self.exit_code = 1
        self.has_warned = False
        self.calls: queue.SimpleQueue[Callable[[Any], object] | None] = queue.SimpleQueue()
        self.started = threading.Event()
        start = (mode, config, run_dir, run_id, facts)
        self.thread = threading.Thread(target=self._work, args=start, name="wandb", daemon=True)
        try:
            # Not in the thread: a data worker forked during an import may wait for it forever.
            import wandb  # noqa: F401
        except Exception as error:
            self._warn(f"continuing without wandb (wandb.mode={mode})", error)
            return
        self.thread.start()
        self.started.wait(START_S)

    def close(self, exit_code: int) -> None:
        """Finish the run; `wandb sync` can send later what is not sent in time."""
        self.exit_code = exit_code
        self.calls.put(None)
        if self.thread.is_alive():
            self.thread.join(self.patience_s)
        if self.thread.is_alive():
            waited = TimeoutError(f"no answer for {self.patience_s:g} s")
            self._warn(
                f"not all was sent: `wandb sync --include-online {self.folder}/*run-*`", waited
            )
        self.has_warned = True  # no warnings after the command's last line

    def _work(self, mode: str, *start: Any) -> None:
        # W&B may raise anything, even SystemExit. None of it may end the run.
        try:
            run = _start_wandb(mode, *start)
        except BaseException as error:  # no key, no network, a full disk, a changed interface
            self._warn(f"continuing without wandb (wandb.mode={mode})", error)
            return
        finally:
            self.started.set()
        try:
            # Plot over our own step count: W&B would drop repeated steps.
            run.define_metric("*", step_metric="step")
            while (call := self.calls.get()) is not None:
                call(run)
        except BaseException as error:
            self._warn("wandb failed; continuing without it", error)
            while self.calls.get() is not None:
                pass
        try:
            run.finish(exit_code=self.exit_code)
        except BaseException as error:
            self._warn("wandb failed at the end", error)

    def _warn(self, what: str, error: BaseException) -> None:
        """Log a warning, the first time only."""
        if not self.has_warned:
            self.has_warned = True
            log.warning("%s: %s", what, " ".join(str(error).split()) or type(error).__name__)


def _start_wandb(
    mode: Any, config: Config, run_dir: Path, run_id: str, facts: dict[str, Any]
) -> Any:
    """Start or continue the W&B run of this id."""
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
    """Upload a checkpoint's weights and wait for the upload."""
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
    try:
        found = (run_dir / ID_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return found if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else None


def _first_lines(path: Path, count: int) -> tuple[list[bytes], list[bytes]]:
    """Return a log's lines of a search, and the first `count` of its other lines.

    Damaged lines, of a kill or a full disk, are dropped but counted. Earlier versions logged a
    search for groups in the run's own log; those lines are not counted.
    """
    before: list[bytes] = []
    own: list[bytes] = []
    counted = 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            is_whole, stage = isinstance(record["step"], int), record.get("stage", TRAIN)
        except (ValueError, TypeError, KeyError):
            is_whole, stage = False, TRAIN
        if stage == SEARCH:
            before.append(line + b"\n")
            continue
        counted += 1
        if is_whole and counted <= count:
            own.append(line + b"\n")
    return before, own


def _jsonable(value: Any) -> Any:
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if finite else None
