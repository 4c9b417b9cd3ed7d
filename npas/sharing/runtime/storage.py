"""Write and read a directory of `model.safetensors` and a JSON description, with checksums."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npas.utils.checks import one_line, path_of
from npas.utils.json_data import read_json

WEIGHTS_FILE = "model.safetensors"
DIGEST, WEIGHTS = "digest", "weights_sha256"
"""The description's fields for the sha256 of its other fields and of `model.safetensors`."""


@dataclass(frozen=True)
class Stored:
    """A directory's description, without its checksums, and its tensors by name, on the CPU."""

    directory: Path
    description: dict[str, Any]
    tensors: dict[str, Tensor]


def make_folder(value: str | os.PathLike[str]) -> Path:
    """Make a folder, unless there is one; raise ValueError for no path and where a file is."""
    path = path_of(value)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{path} is a file, or in one: name a folder") from None
    return path


def write(model: nn.Module, directory: Path, name: str, description: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, tied tensors once, and the description as the file `name`.

    A full disk or a killed process leaves the old pair or the new one: the new description is
    `name.next` until the new weights are in place, and `read` finds by the checksum which one
    belongs to the weights. Raises OSError or safetensors' error if they cannot be written.
    """
    from safetensors.torch import save_file

    following = _next(directory / name)
    if following.is_file() and (directory / WEIGHTS_FILE).is_file():  # a save was killed here
        with contextlib.suppress(ValueError, AttributeError):
            if read_json(following).get(WEIGHTS) == _file_sum(directory / WEIGHTS_FILE):
                os.replace(following, directory / name)
    weights, text = (directory / f"{file}.{os.getpid()}.tmp" for file in (WEIGHTS_FILE, name))
    try:
        state = model.state_dict()
        names = {_memory(state[name]): name for name in sorted(state, reverse=True)}  # tied: one
        tensors = untied({name: state[name] for name in names.values()})
        save_file(tensors, str(weights), {"format": "pt"})
        text.write_text(_described(description, weights), encoding="utf-8")
        shutil.copymode(text, weights)  # safetensors makes it readable for the owner only
        os.replace(text, following)
        os.replace(weights, directory / WEIGHTS_FILE)
        os.replace(following, directory / name)
    finally:
        weights.unlink(missing_ok=True)
        text.unlink(missing_ok=True)


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


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def describe(directory: Path, name: str, description: Mapping[str, Any]) -> None:
    """Write a description for weights that are already in the directory."""
    text = directory / f"{name}.{os.getpid()}.tmp"
    text.write_text(_described(description, directory / WEIGHTS_FILE), encoding="utf-8")
    os.replace(text, directory / name)


def _described(description: Mapping[str, Any], weights: Path) -> str:
    """Return the description as JSON, with both checksums."""
    described = {**description, WEIGHTS: _file_sum(weights)}
    return json.dumps(described | {DIGEST: digest(described)}, indent=1) + "\n"


def digest(description: Mapping[str, Any]) -> str:
    """Return the sha256 of the description as JSON with sorted keys and no spaces."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read(directory: Path, name: str, writer: str) -> Stored:
    """Read what `writer` wrote: the description in the file `name`, and the tensors.

    Raises ValueError if a file is missing, damaged or does not match its checksum. Checksums that
    are missing are not checked.
    """
    path, weights = directory / name, directory / WEIGHTS_FILE
    if _next(path).is_file() and weights.is_file():  # a write ended between its renames
        with contextlib.suppress(ValueError):
            return _read(_next(path), weights, writer)
    return _read(path, weights, writer)


def _read(path: Path, weights: Path, writer: str) -> Stored:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in (weights, path):
        if not file.is_file():
            raise ValueError(
                f"{path.parent} holds no {file.name}: name a folder written by {writer}"
            )
    try:
        description = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): write it again with {writer}") from None
    if not isinstance(description, dict):
        raise ValueError(f"{path} was not written by {writer}: it must be a JSON object")
    given = description.pop(DIGEST, None)
    if given is not None and given != digest(description):
        raise ValueError(
            f"{path} was changed after {writer} wrote it: write it again, or delete its"
            f' "{DIGEST}" to use the edited file'
        )
    given = description.pop(WEIGHTS, None)
    if given is not None and given != _file_sum(weights):
        raise ValueError(
            f"{weights} does not have the sha256 stored in {path.name}: write both again with"
            f" {writer}"
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} is damaged ({one_line(error)}): write it again") from None
    return Stored(path.parent, description, tensors)


def check(stored: Stored, own: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the stored tensors have the names and shapes of `own`."""
    another = f"{stored.directory} was written by another architecture: "
    stored_memory = {_memory(own[name]) for name in stored.tensors if name in own}
    for name, tensor in own.items():
        found = stored.tensors.get(name)
        if found is None:
            if tensor.is_meta or _memory(tensor) not in stored_memory:  # tied: only one is stored
                raise ValueError(f"{another}it lacks {name!r}")
        elif found.shape != tensor.shape:
            raise ValueError(
                f"{another}{name} has shape {list(found.shape)} instead of {list(tensor.shape)}"
            )
    if unknown := [name for name in stored.tensors if name not in own]:
        raise ValueError(f"{another}the network has no {unknown[0]!r:.100}")


def _memory(tensor: Tensor) -> tuple[torch.device, int, torch.Size, tuple[int, ...]]:
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()


def _file_sum(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
