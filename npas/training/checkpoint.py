"""Keep checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong resume.

    checkpoints/step-00000220/
        manifest.json            sha256 of every other file
        state.json               plain data
        model.safetensors, ...   tensors

A checkpoint is written under another name, synced and then renamed, so that one that is there is
whole; one that does not match its manifest is passed over for the one before. Nothing is pickled.
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
    """Give access to a checkpoint that matched its manifest when it was opened."""

    folder: Path
    state: dict[str, Any]

    def tensors(self, name: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Read the tensors saved as `name`, onto the CPU.

        ValueError if there are none, or none of the names, shapes and dtypes of those in `like`.
        """
        file = f"{name}.safetensors"
        with self.refusing():
            found = safetensors.torch.load_file(self.folder / file)
            for key, tensor in (like or {}).items():
                other = found[key]
                if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
                    raise ValueError(
                        f"{key!r} in {file} is {list(other.shape)}, {other.dtype}, and the run's"
                        f" {list(tensor.shape)}, {tensor.dtype}"
                    )
            if more := found.keys() - (found if like is None else like).keys():
                raise ValueError(f"{file} has {shown(min(more))}, which the run has not")
        return found

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Name the checkpoint, and what to do, in a ValueError of one line if it does not fit."""
        try:
            yield
        except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{self.folder} does not fit this run ({' '.join(reason.split())}): remove that"
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
            write_manifest(scratch)
            for path in (*scratch.iterdir(), scratch):
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
        for folder in reversed(self.folders()):
            try:
                return open_checkpoint(folder)
            except ValueError as error:
                if _is_finished(folder):
                    log.warning("passing over a checkpoint: %s", error)
        return None

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
        for folder in self.folders():
            if _step_of(folder) > after:
                _remove(folder)

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:08d}"

    def folders(self) -> list[Path]:
        """List the checkpoints from old to new.

        One whose writer was killed is among them: if it verifies, only the renaming was left.
        """
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_step_of(path), _is_finished(path)))

    def _prune(self) -> None:
        """Remove all but the newest, and those that these say were best when they were written."""
        finished = [path for path in self.folders() if _is_finished(path)]
        kept = finished[-self.keep :]
        best = [_best_of(path) for path in kept]
        for folder in self.folders():
            if folder not in kept and not (folder in finished and _step_of(folder) in best):
                _remove(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open one checkpoint. ValueError says what is wrong with it."""
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
    """Open the checkpoint that `path` is, or the newest of the run or folder that it is.

    ValueError, for each reason another, if there is none that verifies.
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
    if (path / "config.yaml").exists():  # of a run that ended before it saved one
        raise ValueError(f"{path} holds no checkpoint: train it by npas-train run={path}")
    raise ValueError(f"{path} holds no checkpoint: name a run's folder")


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _is_finished(folder: Path) -> bool:
    return "." not in folder.name


def _best_of(folder: Path) -> int | None:
    """Return the step that was best when the checkpoint was written; None if it does not say."""
    try:
        best: int | None = read_json(folder / STATE)["best"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return best


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


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
