"""Checkpoints are whole or not there, and only those that verify are used."""

import json
import logging
from pathlib import Path

import pytest
import torch

from npas.training import checkpoint
from npas.training.checkpoint import Checkpoints, find_checkpoint, open_checkpoint


def save(store: Checkpoints, step: int, best: int | None = None) -> Path:
    tensors = {"model": {"weight": torch.full((2, 3), float(step))}, "rng": {}}
    return store.save(step, {"note": f"step {step}"}, tensors, best)


def steps(store: Checkpoints) -> list[int]:
    return [int(path.name[5:]) for path in sorted(store.folder.iterdir())]


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def test_what_is_saved_comes_back(store: Checkpoints) -> None:
    tensors = {
        "model": {"w": torch.randn(3, 4).to(torch.bfloat16), "count": torch.tensor(7)},
        "rng": {"cpu": torch.get_rng_state()},
    }
    store.save(3, {"best": {"val/accuracy": 0.1 + 0.2}, "id": None}, tensors)
    newest = store.newest()
    assert newest is not None
    assert newest.state["best"] == {"val/accuracy": 0.1 + 0.2}
    for name, group in tensors.items():
        found = newest.tensors(name)
        assert found.keys() == group.keys()
        assert all(torch.equal(found[key], value) for key, value in group.items())
        assert all(found[key].dtype == value.dtype for key, value in group.items())


def test_an_empty_folder_has_none(store: Checkpoints) -> None:
    assert store.newest() is None


def test_keeps_the_last_two_and_the_best(store: Checkpoints) -> None:
    for step in range(1, 7):
        save(store, step, best=2 if step >= 2 else None)
    assert steps(store) == [2, 5, 6]
    save(store, 7, best=7)
    assert steps(store) == [2, 6, 7]  # whoever must go back to 6 wants 2 at the end
    save(store, 8, best=7)
    assert steps(store) == [7, 8]


def test_steps_that_are_to_come_again_are_cleared(store: Checkpoints) -> None:
    for step in (1, 2, 3):
        save(store, step, best=1)
    damage_byte(store.path(3))
    store.clear(after=2)
    assert steps(store) == [1, 2]


def test_one_that_was_only_to_be_renamed_counts(store: Checkpoints) -> None:
    save(store, 1)
    save(store, 2).rename(store.folder / "step-00000002.tmp-4242")
    newest = store.newest()
    assert newest is not None and newest.state["step"] == 2
    save(store, 3)
    assert steps(store) == [1, 3]


def damage_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the midst of a tensor: safetensors itself would load it
    path.write_bytes(data)


def damage_length(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def damage_state(folder: Path) -> None:
    state = (folder / "state.json").read_text()
    (folder / "state.json").write_text(state.replace("step 2", "step 3"))


def seal(folder: Path, **files: object) -> None:
    """Write these files, and a manifest that vouches for them."""
    for name, data in files.items():
        checkpoint._write_json(folder / f"{name}.json", data)
    (folder / "manifest.json").unlink()
    manifest = {path.name: checkpoint._sha256(path) for path in checkpoint._files(folder)}
    checkpoint._write_json(folder / "manifest.json", manifest)


def list_as_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1]")


def state_without_format(folder: Path) -> None:
    seal(folder, state={"step": 2})


def list_as_state(folder: Path) -> None:
    seal(folder, state=[1])


def drop(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_byte, "model.safetensors"),
        (damage_length, "model.safetensors"),
        (damage_manifest, "not a whole checkpoint"),
        (damage_state, "state.json"),
        (list_as_manifest, "not a whole checkpoint"),
        (state_without_format, "not a whole checkpoint"),
        (list_as_state, "not a whole checkpoint"),
        (drop("manifest.json"), "not a whole checkpoint"),
        (drop("model.safetensors"), "not a whole checkpoint"),
        (drop("state.json"), "not a whole checkpoint"),
    ],
)
def test_a_damaged_one_gives_way_to_the_one_before_and_the_log_says_why(
    store: Checkpoints, caplog: pytest.LogCaptureFixture, damage, said: str
) -> None:
    save(store, 1)
    damage(save(store, 2))
    with caplog.at_level(logging.WARNING):
        newest = store.newest()
    assert newest is not None and newest.state["step"] == 1
    assert "step-00000002" in caplog.text and said in caplog.text


def test_a_manifest_that_lists_nothing_is_no_proof(store: Checkpoints) -> None:
    (save(store, 1) / "manifest.json").write_text("{}")
    assert store.newest() is None


def test_a_failed_write_leaves_the_old_ones_and_no_rubbish(
    store: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        save(store, 2)
    assert steps(store) == [1]


def test_what_a_killed_writer_left_is_ignored_and_cleared_away(store: Checkpoints) -> None:
    save(store, 1)
    (store.folder / "step-00000002.tmp-4242").mkdir()
    (store.folder / "step-00000002.tmp-4242" / "model.safetensors").write_bytes(b"half")
    newest = store.newest()
    assert newest is not None and newest.state["step"] == 1
    save(store, 2)
    assert steps(store) == [1, 2]


def test_a_damaged_one_is_replaced_when_its_step_comes_again(store: Checkpoints) -> None:
    save(store, 1)
    damage_byte(save(store, 2))
    save(store, 2)
    assert open_checkpoint(store.folder / "step-00000002").state["note"] == "step 2"


def test_numbers_that_json_lacks_are_not_written(store: Checkpoints) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.save(1, {"loss": float("nan")}, {})
    assert store.newest() is None


def test_a_run_its_checkpoints_or_one_of_them_can_be_named(store: Checkpoints) -> None:
    save(store, 1)
    last = save(store, 2)
    for path in (store.folder.parent, store.folder, last):
        assert find_checkpoint(path).folder == last


def test_why_there_is_no_checkpoint_is_said(store: Checkpoints, tmp_path: Path) -> None:
    def why(path: Path) -> str:
        with pytest.raises(ValueError) as error:
            find_checkpoint(path)
        return str(error.value)

    assert f"there is no folder {tmp_path / 'nothing'}" in why(tmp_path / "nothing")
    assert f"{tmp_path} holds no checkpoint: name a run's folder" in why(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert f"{tmp_path} holds no checkpoint: train it by npas-train run=" in why(tmp_path)
    folders = [save(store, 1), save(store, 2)]
    assert "state.json is a file" in why(folders[0] / "state.json")
    for folder in folders:
        damage_byte(folder)
    assert f"all 2 checkpoints in {tmp_path} are damaged" in why(tmp_path)


def test_whoever_may_read_a_new_file_may_read_a_checkpoint(store: Checkpoints) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in save(store, 1).iterdir()}
    assert modes["model.safetensors"] == modes["state.json"]


def test_a_later_format_is_refused(store: Checkpoints) -> None:
    folder = save(store, 1)
    state = json.loads((folder / "state.json").read_text())
    seal(folder, state=state | {"format": 99})
    with pytest.raises(ValueError, match="format 99"):
        open_checkpoint(folder)
