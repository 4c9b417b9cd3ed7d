"""Checkpoints are written atomically; only those that verify and fit are loaded."""

import json
import logging
import random
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from npas.training import build, train
from npas.training.checkpoint import Checkpoints, find_checkpoint, open_checkpoint, write_manifest
from npas.training.state import load_weights

FILES = ("manifest.json", "model.safetensors", "rng.safetensors", "state.json")


def save(store, step, best=None):
    weights = {"weight": torch.full((50, 70), float(step)), "count": torch.tensor(7)}
    tensors = {"model": weights, "rng": {"cpu": torch.get_rng_state()}}
    return store.save(step, {"note": f"step {step}", "loss": 0.1 + 0.2}, tensors, best)


def steps(store):
    return [int(path.name[5:]) for path in sorted(store.folder.iterdir())]


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


@pytest.fixture
def used(store, caplog):
    """Return a function that says which step is used, and what the log says of others."""

    def look():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            newest = store.newest()
        assert newest is not None
        return newest.state["step"], caplog.text

    return look


def test_what_is_saved_comes_back_as_readable_as_any_file(store):
    assert store.newest() is None
    tensors = {
        "model": {"w": torch.randn(3, 4).to(torch.bfloat16), "count": torch.tensor(7)},
        "rng": {"cpu": torch.get_rng_state()},
    }
    folder = store.save(3, {"best": {"val/accuracy": 0.1 + 0.2}, "id": None}, tensors)
    newest = store.newest()
    assert newest is not None
    assert newest.state["best"] == {"val/accuracy": 0.1 + 0.2}
    for name, group in tensors.items():
        found = newest.tensors(name)
        assert all(torch.equal(found[key], value) for key, value in group.items())
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_keeps_the_last_two_and_the_best(store):
    for step in range(1, 7):
        save(store, step, best=2 if step >= 2 else None)
    assert steps(store) == [2, 5, 6]
    save(store, 7, best=7)
    assert steps(store) == [6, 7]
    save(store, 8, best=7)
    assert steps(store) == [7, 8]
    store.clear(after=7)
    assert steps(store) == [7]


def test_what_a_killed_writer_left(store):
    """One that was only to be renamed counts; half a one is ignored and cleared away."""
    save(store, 1)
    save(store, 2).rename(store.folder / "step-00000002.tmp-4242")
    newest = store.newest()
    assert newest is not None and newest.state["step"] == 2
    half = store.folder / "step-00000003.tmp-4242"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    newest = store.newest()
    assert newest is not None and newest.state["step"] == 2
    save(store, 4)
    assert steps(store) == [1, 4]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_gives_way_to_the_one_before(store, used, name):
    save(store, 1)
    path = save(store, 2) / name
    data, draw = path.read_bytes(), random.Random(name)

    def flipped():
        found = bytearray(data)
        found[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(found)

    other = (store.folder / "step-00000001" / name).read_bytes()
    cut = [data[:length] for length in (0, len(data) // 2, len(data) - 2)]
    for spoilt in [*(flipped() for _ in range(30)), *cut, b"[1]", b"{}", other]:
        if spoilt == data:
            continue  # what both hold
        path.write_bytes(spoilt)
        step, message = used()
        assert step == 1 and "step-00000002" in message
    path.unlink()
    step, message = used()
    assert step == 1 and name in message
    save(store, 2)
    assert used() == (2, "")


def test_a_full_disk_costs_nothing_at_any_point_of_a_write(store, used):
    save(store, 1)
    sizes = [path.stat().st_size for path in save(store, 2).iterdir()]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, *(size - 1 for size in sizes)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(Exception, match="too large"):  # safetensors has one of its own
                save(store, 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert steps(store) == [1, 2] and used() == (2, "")


def test_a_run_its_checkpoints_or_one_of_them_can_be_named(store, tmp_path):
    def why(path):
        with pytest.raises(ValueError) as error:
            find_checkpoint(path)
        return str(error.value)

    assert f"there is no folder {tmp_path / 'nothing'}" in why(tmp_path / "nothing")
    assert f"{tmp_path} holds no checkpoint: name a run's folder" in why(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert f"{tmp_path} holds no checkpoint: train it by npas-train run=" in why(tmp_path)
    folders = [save(store, 1), save(store, 2)]
    for path in (tmp_path, store.folder, folders[1]):
        assert find_checkpoint(path).folder == folders[1]
    for folder in folders:
        (folder / "manifest.json").write_text("{}")
    assert f"all 2 checkpoints in {tmp_path} are damaged" in why(tmp_path)
    later = json.loads((save(store, 3) / "state.json").read_text()) | {"format": 99}
    (store.path(3) / "state.json").write_text(json.dumps(later))
    write_manifest(store.path(3))
    assert "format 99" in why(store.path(3))


def first(tensors, value):
    tensors[min(tensors)] = value


EDITS = {
    "no progress": ("state", lambda s: s.pop("progress"), "it lacks 'progress'"),
    "other data": ("state", lambda s: s["progress"].update(step=11), "data now make 5 steps"),
    "another hash": ("state", lambda s: s.update(config_hash="0"), "with another config"),
    "a weight less": ("model", lambda t: t.pop(min(t)), "Missing key"),
    "a weight more": ("model", lambda t: t.update(more=torch.ones(1)), "Unexpected key"),
    "a longer weight": ("model", lambda t: first(t, torch.ones(3)), "size mismatch"),
    "no optimizer": ("optimizer", lambda t: t.clear(), "it lacks"),
    "no averages": ("averaged", lambda t: t.clear(), "it lacks"),
    "no random numbers": ("rng", lambda t: t.clear(), "it lacks"),
    "short random numbers": ("rng", lambda t: first(t, torch.ones(9, dtype=torch.uint8)), ""),
}


def test_one_that_verifies_but_does_not_fit_is_refused_in_one_line(run_small, small, tmp_path):
    changes = {"epochs": 1, "optim": {"ema_decay": 0.9, "milestones": []}}
    run_small("whole", **changes)
    experiment = build(small(**changes))
    whole = tmp_path / "whole" / "checkpoints" / "step-00000005"
    for case, (name, edit, says) in EDITS.items():
        folder = tmp_path / case / "checkpoints" / whole.name
        shutil.copytree(whole, folder)
        file = folder / (f"{name}.json" if name == "state" else f"{name}.safetensors")
        data = json.loads(file.read_text()) if name == "state" else load_file(file)
        edit(data)
        if name == "state":
            file.write_text(json.dumps(data))
        else:
            save_file(data, file)
        write_manifest(folder)
        with pytest.raises(ValueError, match="resume=never") as error:
            train(experiment, tmp_path / case)
        assert says in str(error.value) and "\n" not in str(error.value), case
        if case == "a weight more":
            with pytest.raises(ValueError, match="does not fit"):
                load_weights(experiment.model, open_checkpoint(folder))
