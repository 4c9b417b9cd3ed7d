"""Dense weights are read from one file or from many, and pickles are refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from npas.training import dense_weights, initial

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(2)}
NAMES = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def shards(folder: Path) -> Path:
    """Write the state as transformers does what is too large for one file."""
    folder.mkdir()
    where = dict(zip(STATE, reversed(NAMES), strict=True))
    for key, name in where.items():
        save_file({key: STATE[key]}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": where}))
    return folder


def test_many_files_are_read_as_one(tmp_path: Path) -> None:
    folder = shards(tmp_path / "many")
    for path in (folder, folder / "model.safetensors.index.json"):
        found = dense_weights.read(path)
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[key], STATE[key]) for key in STATE)
        expected = hashlib.sha256(b"".join((folder / name).read_bytes() for name in NAMES))
        assert initial.weights_sum(path) == expected.hexdigest()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / NAMES[0]).unlink(), f"{NAMES[0]} is no .safetensors file"),
        (lambda folder: save_file({"x": torch.ones(1)}, folder / NAMES[0]), "b.bias of model"),
        (lambda folder: (folder / dense_weights.INDEX_FILE).write_text("{"), "names no files"),
        (
            lambda folder: (folder / dense_weights.INDEX_FILE).write_text(
                json.dumps({"weight_map": {"a.weight": "../other/model.safetensors"}})
            ),
            "names no files beside it",
        ),
        (
            lambda folder: (
                (folder / dense_weights.INDEX_FILE).unlink(),
                (folder / "pytorch_model.bin.index.json").write_text("{}"),
            ),
            "pytorch_model.bin.index.json is a pickle",
        ),
        (
            lambda folder: (
                (folder / dense_weights.INDEX_FILE).unlink(),
                (folder / "pytorch_model.bin").write_bytes(b""),
            ),
            "pytorch_model.bin is a pickle",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(
    spoil: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    folder = shards(tmp_path / "many")
    spoil(folder)
    with pytest.raises(ValueError, match=said) as error:
        dense_weights.read(folder)
    assert "\n" not in str(error.value)
