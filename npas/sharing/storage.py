"""Write a network's tensors beside a description of it, and read both back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

WEIGHTS_FILE = "model.safetensors"


def write(model: nn.Module, directory: Path, name: str, description: dict[str, Any]) -> None:
    """Write `model.safetensors`, every tensor once, and the description under its name.

    Both are written beside what is there before either takes its place, so that a full disk leaves
    the old pair. OSError, or safetensors' own error, if they cannot be written.
    """
    from safetensors.torch import save_model

    directory.mkdir(parents=True, exist_ok=True)
    new = {file: directory / f"{file}.{os.getpid()}.tmp" for file in (WEIGHTS_FILE, name)}
    try:
        new[name].write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        save_model(model, str(new[WEIGHTS_FILE]))
        shutil.copymode(new[name], new[WEIGHTS_FILE])  # safetensors writes for the owner alone
        for file, temporary in new.items():
            os.replace(temporary, directory / file)
    finally:
        for temporary in new.values():
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def describe(directory: Path, name: str, description: dict[str, Any]) -> None:
    """Write a description beside weights that lie there already."""
    new = directory / f"{name}.{os.getpid()}.tmp"
    new.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    os.replace(new, directory / name)


def read(directory: Path, name: str, writer: str) -> dict[str, Any]:
    """Return the description; ValueError where a file is missing or no such description."""
    for file in (WEIGHTS_FILE, name):
        if not (directory / file).is_file():
            raise ValueError(f"{directory} holds no {file}: name a folder that {writer} wrote")
    try:
        description = json.loads((directory / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{directory / name} is damaged ({error}): write it again") from None
    if not isinstance(description, dict):
        raise ValueError(f"{directory / name} is no description that {writer} wrote")
    return description


def load_weights(model: nn.Module, directory: Path) -> None:
    """Fill a network with the tensors; ValueError where they are another architecture's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        load_model(model, str(directory / WEIGHTS_FILE))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{directory} was written by another architecture: {reason}") from None
