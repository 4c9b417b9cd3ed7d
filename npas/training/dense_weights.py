"""Read dense weights from one safetensors file, or from several files and their index.

transformers splits large networks: the `weight_map` of `model.safetensors.index.json` maps each
tensor to one of `model-00001-of-00002.safetensors`, ... Pickled weights are refused.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from npas.sharing import api
from npas.sharing.storage import WEIGHTS_FILE
from npas.utils.json_data import read_json

INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".bin.index.json")


def files(path: Path) -> list[Path]:
    """Return the sorted weight files of a file or folder. Raises ValueError if there are none."""
    found = [path]
    if path.is_dir():
        known = (WEIGHTS_FILE, INDEX_FILE)
        found = [path / name for name in known if (path / name).is_file()] or sorted(path.iterdir())
    if pickled := [file.name for file in found if file.name.endswith(PICKLED)]:
        raise ValueError(
            f"{pickled[0]} is a pickle, which can run code when it is read: save the weights as"
            f" {WEIGHTS_FILE}, as transformers' save_pretrained does"
        )
    first = found[0] if found else path
    if first.name.endswith(INDEX_FILE):
        try:
            return sorted({first.parent / name for name in read_json(first)["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{first.name} has no weight_map of files: download it again"
            ) from None
    if path.is_dir() and first.name != WEIGHTS_FILE:
        raise ValueError(f"the folder holds neither checkpoints nor {WEIGHTS_FILE}: name a run")
    return [first]


def read(path: Path) -> dict[str, Tensor]:
    """Read dense weights. Raises ValueError if a file is missing, damaged or a shared network's."""
    tensors: dict[str, Tensor] = {}
    for file in files(path):
        if (file.parent / api.ALLOCATION_FILE).is_file():
            raise ValueError(
                "npas.save wrote a shared network there: name its run, or the output of npas-export"
            )
        try:
            tensors |= safetensors.torch.load_file(file)
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{file.name} is not a valid .safetensors file ({reason})") from None
    return tensors
