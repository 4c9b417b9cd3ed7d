"""Whatever becomes of a checkpoint's files, the one before is used, and the log says why."""

import logging
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from npas.training.checkpoint import Checkpoints

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors")
EVERY_FILE = pytest.mark.parametrize("name", [*FILES, "state.json"])


def save(store: Checkpoints, step: int) -> Path:
    weights = {"weight": torch.full((50, 70), float(step)), "bias": torch.arange(70.0)}
    groups = {"model": weights, "optimizer": weights, "rng": {"cpu": torch.get_rng_state()}}
    return store.save(step, {"note": "a note", "progress": {"step": step}}, groups)


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    """Return a store of two checkpoints."""
    found = Checkpoints(tmp_path / "checkpoints")
    save(found, 1)
    save(found, 2)
    return found


@pytest.fixture
def used(store: Checkpoints, caplog: pytest.LogCaptureFixture) -> Callable[[], tuple[int, str]]:
    """Return a function that says which step is used, and what the log says of the other."""

    def look() -> tuple[int, str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            newest = store.newest()
        assert newest is not None
        return newest.state["step"], caplog.text

    return look


@EVERY_FILE
def test_a_flipped_bit_anywhere_is_found(store: Checkpoints, used, name: str) -> None:
    path = store.folder / "step-00000002" / name
    data, draw = path.read_bytes(), random.Random(name)
    for _ in range(60):
        place = draw.randrange(len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        step, said = used()
        assert step == 1, f"byte {place} of {name}"
        # JSON that cannot be read is said to be that, and not which file it is.
        assert "step-00000002" in said and (name in said or name.endswith(".json"))
    path.write_bytes(data)
    assert used() == (2, "")


@EVERY_FILE
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_truncated_file_is_found(store: Checkpoints, used, name: str, kept: float) -> None:
    path = store.folder / "step-00000002" / name
    data = path.read_bytes()
    path.write_bytes(data[: min(int(kept * len(data)), len(data) - 2)])
    step, said = used()
    assert step == 1 and "step-00000002" in said


@EVERY_FILE
def test_a_missing_file_is_found(store: Checkpoints, used, name: str) -> None:
    (store.folder / "step-00000002" / name).unlink()
    step, said = used()
    assert step == 1 and "step-00000002" in said and name in said


@EVERY_FILE
def test_a_file_of_another_checkpoint_is_found(store: Checkpoints, used, name: str) -> None:
    last = store.folder / "step-00000002"
    if (last / name).read_bytes() == (store.folder / "step-00000001" / name).read_bytes():
        return  # no harm: what both hold
    shutil.copy(store.folder / "step-00000001" / name, last / name)
    step, said = used()
    assert step == 1 and "step-00000002" in said


def test_an_empty_folder_is_passed_over(store: Checkpoints, used) -> None:
    (store.folder / "step-00000003").mkdir()
    step, said = used()
    assert step == 2 and "step-00000003" in said


def test_a_disk_that_is_full_at_any_point_of_a_write_costs_nothing(
    store: Checkpoints, used, tmp_path: Path
) -> None:
    sizes = [path.stat().st_size for path in (store.folder / "step-00000002").iterdir()]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    for limit in (0, *(size + more for size in sizes for more in (-1, 0, 1))):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            save(store, 3)
        except Exception as error:  # safetensors has one of its own
            refused += 1
            assert "too large" in str(error)
            assert sorted(path.name for path in store.folder.iterdir()) == [
                "step-00000001",
                "step-00000002",
            ]
            assert used() == (2, "")
        else:
            shutil.rmtree(store.folder)
            save(store, 1)
            save(store, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused >= 2 * len(sizes)
