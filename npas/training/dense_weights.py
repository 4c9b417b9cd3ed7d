"""Read dense weights from safetensors: one file, or several that an index names.

transformers splits what is large: `model.safetensors.index.json` has a `weight_map` of which tensor
lies in which of `model-00001-of-00002.safetensors`, ... Pickled weights are not read.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from npas.sharing import api
from npas.sharing.storage import WEIGHTS_FILE

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".bin.index.json")


def files(path: Path) -> list[Path]:
    """Return the files of dense weights that a path names, sorted; ValueError if there are none."""
    index = _index(path)
    if index is not None:
        return [index.parent / name for name in sorted(set(_weight_map(index).values()))]
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else [path.name]
    if path.is_dir() and WEIGHTS_FILE in names:
        return [path / WEIGHTS_FILE]
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        raise ValueError(
            f"{pickled[0]} is a pickle, which may run code when it is read: save the weights as"
            f" {WEIGHTS_FILE}, as transformers' save_pretrained does"
        )
    if path.is_dir():
        raise ValueError(f"the folder holds neither checkpoints nor {WEIGHTS_FILE}: name a run")
    return [path]


def read(path: Path) -> dict[str, Tensor]:
    """Read dense weights; ValueError if they are none, or not whole."""
    found: dict[str, Tensor] = {}
    for file in files(path):
        if (file.parent / api.ALLOCATION_FILE).is_file():
            raise ValueError(
                "npas.save wrote a shared network there: name the run, or what npas-export made of"
                " it"
            )
        try:
            found |= safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            said = f"{file.name} is no .safetensors file that can be read"
            raise ValueError(f"{said} ({reason})") from None
    index = _index(path)
    if index is not None and (missing := sorted(_weight_map(index).keys() - found.keys())):
        raise ValueError(f"{missing[0]} of {index.name} is in none of its files: get them again")
    return found


def _index(path: Path) -> Path | None:
    """Return the index of several files, if that is what a path names."""
    if path.name.endswith(f"{WEIGHTS_FILE}.index.json"):
        return path
    alone = path.is_dir() and not (path / WEIGHTS_FILE).is_file()
    return path / INDEX_FILE if alone and (path / INDEX_FILE).is_file() else None


def _weight_map(index: Path) -> dict[str, str]:
    """Return which file each tensor is in; ValueError unless all lie beside the index."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = [(key, name) for key, name in found.items() if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        names, found = [], {}
    if not names or len(names) < len(found):
        raise ValueError(f"{index.name} names no files beside it in a weight_map: get it again")
    return dict(names)
