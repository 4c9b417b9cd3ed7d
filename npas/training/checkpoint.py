"""Keep checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong resume.

    checkpoints/step-00000220/
        manifest.json            sha256 of every other file
        state.json               plain data
        model.safetensors, ...   tensors

A checkpoint is written under another name, synced and then renamed, so that one that is there is
whole; one that does not match its manifest is passed over for the one before. Nothing is pickled.
"""

import hashlib
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
from npas.tasks.common.files import give_usual_mode
from npas.utils.json_data import decode, read_json, shown

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Give access to a checkpoint that matched its manifest when it was opened."""

    folder: Path
    state: dict[str, Any]

    def tensors(self, name: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Read the tensors saved as `name`, onto the CPU.

        ValueError if there are none, or none of the names, shapes and dtypes of those in `like`.
        """
        file = f"{name}.safetensors"
        with self.refusing():
            try:
                found = safetensors.torch.load_file(self.folder / file)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} cannot be read: {error}") from None
            for key, tensor in (like or {}).items():
                check_tensor(found.get(key), tensor, f"{key!r} in {file}")
            if like is not None and len(found) > len(like):
                other = next(key for key in found if key not in like)
                raise ValueError(f"{file} has {shown(other)}, which the run has not")
        return found

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Name the checkpoint, and what to do, in the one line of a ValueError."""
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"{self.folder} does not fit this run ({' '.join(str(error).split())}): remove that"
                " folder to go on from the checkpoint before, or set resume=never"
            ) from None

    def has(self, name: str) -> bool:
        """Return whether tensors were saved as `name`."""
        return (self.folder / f"{name}.safetensors").exists()


class Checkpoints:
    """Keep a run's newest checkpoints, and its best one, in a folder."""

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
        """Write the checkpoint of `step`; remove all but the newest and that of step `best`."""
        final = self.path(step)
        scratch = final.with_name(f"{final.name}.tmp-{os.getpid()}")
        _remove(scratch)
        scratch.mkdir(parents=True)
        try:
            for name, group in tensors.items():
                path = scratch / f"{name}.safetensors"
                safetensors.torch.save_file(apart(group), path)
                give_usual_mode(path)
            _write_json(scratch / STATE, {"format": FORMAT, "step": step, "best": best, **state})
            _write_json(scratch / MANIFEST, {path.name: _sha256(path) for path in _files(scratch)})
            for path in (*_files(scratch), scratch):
                _sync(path)
            _remove(final)  # of the same step; `newest` reads either
            scratch.rename(final)
            _sync(self.folder)
        except BaseException:
            _remove(scratch)
            raise
        self._prune()
        return final

    def newest(self) -> Checkpoint | None:
        """Open the newest checkpoint that verifies; log which were passed over, and why."""
        for folder in reversed(self._folders()):
            try:
                return open_checkpoint(folder)
            except ValueError as error:
                if folder == self.path(_step_of(folder)):  # else it was never finished
                    log.warning("passing over a checkpoint: %s", error)
        return None

    def at(self, step: int) -> Checkpoint:
        """Open the checkpoint of a step. ValueError if it is missing or damaged."""
        return open_checkpoint(self.path(step))

    def settle(self, checkpoint: Checkpoint) -> Checkpoint:
        """Rename a checkpoint whose writer was killed when only that was left to do."""
        final = self.path(checkpoint.state["step"])
        if checkpoint.folder == final or checkpoint.folder.parent != self.folder:
            return checkpoint
        _remove(final)  # which does not verify, or it would have come first
        checkpoint.folder.rename(final)
        _sync(self.folder)
        return Checkpoint(final, checkpoint.state)

    def adopt(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint from another run's folder, unless it is here."""
        final = self.path(checkpoint.state["step"])
        if not final.exists():
            scratch = final.with_name(f"{final.name}.tmp-{os.getpid()}")
            shutil.copytree(checkpoint.folder, scratch)
            scratch.rename(final)

    def clear(self, after: int = -1) -> None:
        """Remove the checkpoints of all steps after one, which are to be done again."""
        for folder in self._folders():
            if _step_of(folder) > after:
                _remove(folder)

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    def _folders(self) -> list[Path]:
        """List the checkpoints from old to new.

        One whose writer was killed is among them: if it verifies, only the renaming was left.
        """
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_step_of(path), "." not in path.name))

    def _prune(self) -> None:
        """Remove all but the newest, and those that these say were best when they were written."""
        written = [path for path in self._folders() if "." not in path.name]
        kept = {path: _best_of(path) for path in written[-self.keep :]}
        for folder in self._folders():
            is_best = "." not in folder.name and _step_of(folder) in kept.values()
            if folder not in kept and not is_best:
                _remove(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open one checkpoint. ValueError says what is wrong with it."""
    try:
        manifest = decode(dict[str, str], read_json(folder / MANIFEST), MANIFEST)
        state = _decode_state(read_json(folder / STATE), folder)
        if odd := [name for name in manifest if not _PLAIN.fullmatch(name)]:
            raise ValueError(f"{MANIFEST} names {shown(odd[0])}, which is no file of a checkpoint")
        if others := {path.name for path in folder.glob("*.safetensors")} - manifest.keys():
            raise ValueError(f"{MANIFEST} lacks {min(others)}")
        damaged = [name for name in manifest if _sha256(folder / name) != manifest[name]]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a whole checkpoint ({error})") from error
    if damaged or STATE not in manifest:
        raise ValueError(f"{folder} is damaged: {damaged or STATE} does not match {MANIFEST}")
    if state["format"] != FORMAT:
        raise ValueError(f"{folder} has format {state['format']}; this npas reads {FORMAT}")
    return Checkpoint(folder, state)


class _State(dict[str, Any]):
    """The fields of `state.json`; ValueError for one that it lacks."""

    folder: Path

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.folder / STATE} lacks {key!r}: set resume=never")


_KINDS: dict[str, Any] = {
    "format": int,
    "step": int,
    "progress": dict[str, Any],
    "config": dict[str, Any],
    "config_hash": str,
    "scaler": dict[str, Any] | None,
    "stage": str,
    "grouping": dict[str, Any] | None,
    "ranks": int,
    "origin": str | None,
}
"""What the fields of `state.json` are, where they are there."""
_PLAIN = re.compile(r"\w[\w.-]*")


def _decode_state(raw: object, folder: Path) -> _State:
    state = _State(decode(dict[str, Any], raw, STATE))
    state.folder = folder
    if "format" not in state:
        raise ValueError(f"{STATE} is none of ours")
    for key in state.keys() & _KINDS.keys():
        decode(_KINDS[key], state[key], f"{STATE}: {key}")
    if isinstance(state.get("config"), dict):
        state["config"] = modernize(state["config"])
    for part in (state.get("progress") or {}).get("earlier") or ():
        if isinstance(part, dict) and "accumulation" in part:
            part["grad_accum_steps"] = part.pop("accumulation")
    named = _NAME.fullmatch(folder.name)
    if state["format"] == FORMAT and named and int(named[1]) != state["step"]:
        raise ValueError(f"its name is of another step than {state['step']}")
    return state


def check_tensor(found: Tensor | None, like: Tensor, what: str) -> None:
    """ValueError unless a tensor was found, and has the shape and dtype of another."""
    if found is None:
        raise ValueError(f"there is no {what}")
    if (found.shape, found.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"{what} is {list(found.shape)}, {found.dtype}, and the run's {list(like.shape)},"
            f" {like.dtype}"
        )


def find_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint that `path` is, or the newest of the run or folder that it is.

    ValueError, for each reason another, if there is none that verifies.
    """
    if not path.exists():
        raise ValueError(f"there is no folder {path}: name a run's folder")
    if not path.is_dir():
        raise ValueError(f"{path} is a file: name the run's folder")
    if (path / MANIFEST).exists():
        return open_checkpoint(path)
    damaged = 0
    for store in (Checkpoints(path / "checkpoints"), Checkpoints(path)):
        if found := store.newest():
            return found
        damaged += len(store._folders())
    if damaged:
        raise ValueError(f"all {damaged} checkpoints in {path} are damaged: train the run again")
    if (path / "config.yaml").exists():  # of a run that ended before it saved one
        raise ValueError(f"{path} holds no checkpoint: train it by npas-train run={path}")
    raise ValueError(f"{path} holds no checkpoint: name a run's folder")


_NAME = re.compile(r"step-(\d+)(\.tmp-\d+)?")


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _best_of(folder: Path) -> int | None:
    """Return the step that was best when the checkpoint was written; None if it does not say."""
    try:
        best: int | None = decode(int | None, read_json(folder / STATE)["best"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best


def _remove(path: Path) -> None:
    """Remove a folder, or whatever lies in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir()))


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return plain tensors that share no memory: of tied ones all but the first are copies."""
    seen: set[int] = set()
    found = {}
    for key, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        address = plain.untyped_storage().data_ptr()
        found[key] = plain.clone() if address in seen else plain
        seen.add(address)
    return found


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
