"""Atomic, verified checkpoints: a kill, a full disk or a flipped bit cannot cause a wrong resume.

    checkpoints/step-00000220/
        manifest.json            sha256 of every other file
        state.json               plain data
        model.safetensors, ...   tensors

A checkpoint is written to a temporary directory, synced and renamed. One that does not match its
manifest is skipped for the one before it. Nothing is pickled.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from npas.config.renames import modernize
from npas.tasks.common.checksums import sha256
from npas.tasks.common.files import give_usual_mode
from npas.utils.json_data import decode, read_json, shown

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d+)(\.tmp-\d+)?")


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, whose files matched the manifest."""

    folder: Path
    state: dict[str, Any]

    def tensors(self, name: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Read the tensors saved as `name`, onto the CPU.

        Raises ValueError if they are missing, or if names, shapes or dtypes differ from `like`.
        """
        file = f"{name}.safetensors"
        with self.refusing():
            found = safetensors.torch.load_file(self.folder / file)
            for key, tensor in (like or {}).items():
                other = found[key]
                if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
                    raise ValueError(
                        f"{key!r} in {file} is {list(other.shape)}, {other.dtype}, but the run's is"
                        f" {list(tensor.shape)}, {tensor.dtype}"
                    )
            if more := found.keys() - (found if like is None else like).keys():
                raise ValueError(f"{file} has {shown(min(more))}, which the run lacks")
        return found

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

    def has(self, name: str) -> bool:
        """Return whether tensors were saved as `name`."""
        return (self.folder / f"{name}.safetensors").exists()


class Checkpoints:
    """A folder of a run's newest checkpoints and its best one."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self,
        step: int,
        state: dict[str, Any],
        tensors: dict[str, dict[str, Tensor]],
        best: int | None = None,
    ) -> Path:
        """Write a checkpoint of `step`; remove all but the newest ones and that of step `best`."""
        final = self.path(step)
        scratch = final.with_name(f"{final.name}.tmp-{os.getpid()}")
        _remove(scratch)
        scratch.mkdir(parents=True)
        try:
            for name, group in tensors.items():
                path = scratch / f"{name}.safetensors"
                safetensors.torch.save_file(untied(group), path)
                give_usual_mode(path)
            _write_json(scratch / STATE, {"format": FORMAT, "step": step, "best": best, **state})
            write_manifest(scratch)
            for path in (*scratch.iterdir(), scratch):
                _sync(path)
            _remove(final)  # of the same step; `newest` can read either
            scratch.rename(final)
            _sync(self.folder)
        except BaseException:
            _remove(scratch)
            raise
        self._prune()
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

    def settle(self, checkpoint: Checkpoint) -> Checkpoint:
        """Rename a complete checkpoint whose writer was killed before the renaming."""
        final = self.path(checkpoint.state["step"])
        if checkpoint.folder == final or checkpoint.folder.parent != self.folder:
            return checkpoint
        _remove(final)  # invalid, or `newest` would have returned it
        checkpoint.folder.rename(final)
        _sync(self.folder)
        return Checkpoint(final, checkpoint.state)

    def adopt(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint from another run's folder if it is not in this one."""
        final = self.path(checkpoint.state["step"])
        if not final.exists():
            scratch = final.with_name(f"{final.name}.tmp-{os.getpid()}")
            shutil.copytree(checkpoint.folder, scratch)
            scratch.rename(final)

    def clear(self, after: int = -1) -> None:
        """Remove the checkpoints of steps after `after`."""
        for folder in self.folders():
            if _step_of(folder) > after:
                _remove(folder)

    def path(self, step: int) -> Path:
        """Return the path of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def folders(self) -> list[Path]:
        """List the checkpoints from old to new, unrenamed ones of killed writers included."""
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_step_of(path), _is_finished(path)))

    def _prune(self) -> None:
        """Remove all but the newest checkpoints and those that these name as best."""
        finished = [path for path in self.folders() if _is_finished(path)]
        kept = finished[-self.keep :]
        best = [_best_of(path) for path in kept]
        for folder in self.folders():
            if folder not in kept and not (folder in finished and _step_of(folder) in best):
                _remove(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open one checkpoint. Raises ValueError if it is incomplete or damaged."""
    try:
        manifest = decode(dict[str, str], read_json(folder / MANIFEST), MANIFEST)
        state = decode(dict[str, Any], read_json(folder / STATE), STATE)
        damaged = [name for name in manifest if _sum_of(folder / name) != manifest[name]]
        written = state["format"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not a whole checkpoint ({error})") from error
    if damaged or STATE not in manifest:
        raise ValueError(f"{folder} is damaged: {damaged or STATE} does not match {MANIFEST}")
    if written != FORMAT:
        raise ValueError(f"{folder} has format {written}; this npas reads {FORMAT}")
    if "config" in state:
        state["config"] = modernize(state["config"])
    for part in state.get("progress", {}).get("earlier", ()):
        if "accumulation" in part:
            part["grad_accum_steps"] = part.pop("accumulation")
    return Checkpoint(folder, state)


def find_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint at `path`, or the newest one of the run or folder at `path`.

    Raises ValueError if there is no valid one.
    """
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
    if (path / "config.yaml").exists():  # a run that ended before it saved one
        raise ValueError(f"{path} holds no checkpoint: train it by npas-train run={path}")
    raise ValueError(f"{path} holds no checkpoint: name a run's folder")


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _is_finished(folder: Path) -> bool:
    return "." not in folder.name


def _best_of(folder: Path) -> int | None:
    """Return the best step when the checkpoint was written; None if unknown."""
    try:
        best: int | None = read_json(folder / STATE)["best"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory, copying all but the first of tied ones."""
    seen: set[int] = set()
    found = {}
    for key, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        address = plain.untyped_storage().data_ptr()
        found[key] = plain.clone() if address in seen else plain
        seen.add(address)
    return found


def write_manifest(folder: Path) -> None:
    """Write the checksums of a checkpoint's files."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    _write_json(folder / MANIFEST, {path.name: _sum_of(path) for path in files})


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def _sum_of(path: Path) -> str:
    return sha256(path).removeprefix("sha256 ")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
