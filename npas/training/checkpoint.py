"""Atomic, verified checkpoints: a kill, a full disk or a flipped bit cannot cause a wrong resume.

    checkpoints/step-00000220/
        manifest.json            sha256 of every other file
        state.json               plain data
        model.safetensors, ...   tensors

A checkpoint is written to a temporary directory, synced and renamed. One that does not match its
manifest is skipped for the one before it. Nothing is pickled.
"""

import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from npas.config import CONFIG_FILE, Config
from npas.config.renames import modernize
from npas.sharing.runtime.storage import untied
from npas.tasks.common.checksums import sha256
from npas.training.grouping import Grouping, from_dict
from npas.utils.files import give_usual_mode
from npas.utils.json_data import decode, read_json

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d+)(\.tmp-\d+)?")
_remove = functools.partial(shutil.rmtree, ignore_errors=True)


@dataclass
class Progress:
    """The progress of a training, as stored in its checkpoints."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # whole epochs done, evaluated and saved
    logged: int = 0  # lines of the log
    prunings: int = 0  # times that filters were pruned
    elapsed_s: float = 0.0  # including earlier, resumed parts of the run
    metrics: dict[str, float] | None = None  # of the last epoch, on held-out data
    best: dict[str, Any] | None = None  # step, epoch and metrics of the best epoch
    history: dict[str, list[float]] = field(default_factory=dict)  # held-out metrics by epoch
    wandb_id: str | None = None
    # Earlier parts of the run with another number of ranks or batch parts, and their last steps.
    earlier: list[dict[str, int]] = field(default_factory=list)
    # Commits of earlier parts that were trained by other code, and their last steps.
    earlier_code: list[dict[str, Any]] = field(default_factory=list)

    def is_over(self, config: Config) -> bool:
        most_s = config.trainer.max_seconds
        return self.epoch >= config.trained_epochs or (
            most_s is not None and self.elapsed_s >= most_s
        )


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, whose files matched the manifest."""

    folder: Path
    state: dict[str, Any]

    @property
    def progress(self) -> Progress:
        with self.refusing():
            return Progress(**self.state["progress"])

    @property
    def grouping(self) -> Grouping | None:
        """The groups that the run's search had found, if any."""
        stored = self.state.get("grouping")
        return from_dict(stored) if stored else None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors saved as `name`, onto the CPU."""
        with self.refusing():
            return safetensors.torch.load_file(self.folder / f"{name}.safetensors")

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.safetensors").exists()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Turn errors within a `with` block into a ValueError that names the checkpoint."""
        try:
            yield
        except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{self.folder} does not fit this run ({' '.join(reason.split())}): remove that"
                " folder to resume from the checkpoint before it, or set resume=never"
            ) from None


class Checkpoints:
    """A folder of a run's newest checkpoints and its best one."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self, step: int, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]],
        best: int | None = None,
    ) -> Path:  # fmt: skip
        """Write a checkpoint of `step`; remove all but the newest ones and that of step `best`."""
        final, scratch = self.path(step), self._scratch(step)
        scratch.mkdir(parents=True)
        try:
            for name, group in tensors.items():
                path = scratch / f"{name}.safetensors"
                safetensors.torch.save_file(untied(group), path)
                give_usual_mode(path)
            _write_json(scratch / STATE, {"format": FORMAT, "step": step, **state})
            write_manifest(scratch)
            for path in (*scratch.iterdir(), scratch):
                _sync(path)
            _remove(final)  # of the same step; `newest` can read either
            scratch.rename(final)
            _sync(self.folder)
        except BaseException:
            _remove(scratch)
            raise
        finished = [path for path in self.folders() if _is_finished(path)]
        kept = {*finished[-self.keep :], *(p for p in finished if _step_of(p) == best)}
        for folder in self.folders():
            if folder not in kept:
                _remove(folder)
        return final

    def newest(self) -> Checkpoint | None:
        """Open the newest valid checkpoint; log a warning for each invalid one."""
        for folder in reversed(self.folders()):
            try:
                return open_checkpoint(folder)
            except ValueError as error:
                if _is_finished(folder):
                    log.warning("skipping a checkpoint: %s", error)
        return None

    def take(self, found: Checkpoint) -> Checkpoint:
        """Copy another run's checkpoint here, or rename one whose writer was killed before that."""
        final, source = self.path(found.state["step"]), found.folder
        if source != final:
            if source.parent != self.folder:
                source = self._scratch(found.state["step"])
                shutil.copytree(found.folder, source)
            _remove(final)
            source.rename(final)
            _sync(self.folder)
        return Checkpoint(final, found.state)

    def clear(self, after: int = -1) -> None:
        for folder in self.folders():
            if _step_of(folder) > after:
                _remove(folder)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def folders(self) -> list[Path]:
        """List the checkpoints from old to new, unrenamed ones of killed writers included."""
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_step_of(path), _is_finished(path)))

    def _scratch(self, step: int) -> Path:
        scratch = self.folder / f"step-{step:08d}.tmp-{os.getpid()}"
        _remove(scratch)
        return scratch


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open one checkpoint. Raises ValueError if it is incomplete or damaged."""
    try:
        manifest = decode(dict[str, str], read_json(folder / MANIFEST), MANIFEST)
        state = decode(dict[str, Any], read_json(folder / STATE), STATE)
        damaged = [name for name in manifest if _digest(folder / name) != manifest[name]]
        written = state["format"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not a whole checkpoint ({error})") from error
    if damaged or STATE not in manifest:
        raise ValueError(f"{folder} is damaged: {damaged or STATE} does not match {MANIFEST}")
    if written != FORMAT:
        raise ValueError(f"{folder} has format {written}; this npas reads {FORMAT}")
    if "config" in state:
        state["config"] = modernize(state["config"])
    return Checkpoint(folder, state)


def find_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint at `path`, or the newest one of the run or folder at `path`."""
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}: name a run's folder")
    if (path / MANIFEST).exists():
        return open_checkpoint(path)
    damaged = 0
    for store in (Checkpoints(path / "checkpoints"), Checkpoints(path)):
        if found := store.newest():
            return found
        damaged += len(store.folders())
    if damaged:
        raise ValueError(f"all {damaged} checkpoints in {path} are damaged: train the run again")
    is_run = (path / CONFIG_FILE).exists()  # one that ended before it saved a checkpoint
    advice = f"train it by npas-train run={path}" if is_run else "name a run's folder"
    raise ValueError(f"{path} holds no checkpoint: {advice}")


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _is_finished(folder: Path) -> bool:
    return "." not in folder.name


def write_manifest(folder: Path) -> None:
    """Write the checksums of a checkpoint's files."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    _write_json(folder / MANIFEST, {path.name: _digest(path) for path in files})


def _digest(path: Path) -> str:
    return sha256(path).removeprefix("sha256 ")


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
