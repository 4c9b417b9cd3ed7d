"""Shards are WebDataset's, equal the folder to the byte, and report damage."""

import io
import json
import os
import runpy
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import one_line
from imagenet_files import WNIDS, make

from npas.tasks import base
from npas.tasks.imagenet import shards
from npas.tasks.imagenet.shards import Folder

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "pack_imagenet.py"


def run_script(monkeypatch, root, *overrides):
    places = [str(root / name) for name in ("imagenet", "imagenet-shards")]
    monkeypatch.setattr(sys, "argv", ["pack_imagenet.py", *places, *overrides])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def packed(tree, monkeypatch):
    """A tree, packed by the script: three shards of 7, 7 and 4 images, and two of val's 9."""
    run_script(monkeypatch, tree, "--per-shard", "7", "--quiet")
    return tree


def shard(root, name="train-000001"):
    return root / "imagenet-shards" / f"{name}.tar"


def shards_of(root):
    return {path.name: path.read_bytes() for path in shard(root).parent.glob("*.tar")}


def fail(error):
    def stop(*anything, **keys):
        raise error

    return stop


def refused(root, message, **keys):
    with one_line(message):
        make(root, form="shards", **keys)


def test_shards_are_read_equal_to_the_folder(packed):
    folder, other = make(packed, held_out=2), make(packed, held_out=2, form="shards")
    for split in ("train", "val"):
        one, two = folder.images[split], other.images[split]
        assert torch.equal(one.labels_N, two.labels_N) and one.classes == two.classes
        assert all(one.read(i) == two.read(i) for i in range(len(one.labels_N)))
        assert one.total_bytes() == two.total_bytes()
    assert other.images["train"].name(8) == f"{shard(packed)}:{WNIDS[1]}/{WNIDS[1]}_2.jpg"
    made = [list(base.batches(t, 1, 4, first_step=1)) for t in (folder, other)]
    assert len(made[0]) == 3
    for a, b in zip(*made, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


def test_a_shard_is_a_plain_tar_of_pairs_the_same_bytes_each_time(packed, tmp_path):
    with tarfile.open(shard(packed)) as tar:
        names = tar.getnames()
        assert names[:2] == [f"{WNIDS[1]}/{WNIDS[1]}_1.cls", f"{WNIDS[1]}/{WNIDS[1]}_1.jpg"]
        label, image = (tar.extractfile(name) for name in names[:2])
        assert label is not None and label.read() == b"1"
        path = packed / "imagenet" / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG"
        assert image is not None and image.read() == path.read_bytes()
    folder = Folder(packed / "imagenet" / "train", 3)
    shards.pack({"train": folder}, tmp_path / "again", 7)
    assert (tmp_path / "again" / "train-000001.tar").read_bytes() == shard(packed).read_bytes()


def test_the_index_is_kept_and_made_again_where_a_shard_has_changed(packed, monkeypatch):
    first = make(packed, form="shards").images["train"]
    index = shard(packed).parent / ".train.npz"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "index_shard", lambda path: pytest.fail("it was read again"))
        again = make(packed, form="shards").images["train"]
    assert torch.equal(again.labels_N, first.labels_N) and again.name(17) == first.name(17)
    index.write_bytes(index.read_bytes()[:-100])
    assert make(packed, form="shards").images["train"].read(17) == first.read(17)
    whole = shard(packed).read_bytes()
    for length in (0, 100, 2000):
        shard(packed).write_bytes(whole[:length])
        refused(packed, "train-000001.tar cannot be read|as planned: pack it again")
    shard(packed).write_bytes(whole)
    assert make(packed, form="shards").images["train"].read(17) == first.read(17)


def test_packing_goes_on_where_it_was_broken_off(packed, monkeypatch, capsys):
    before, kept = shards_of(packed), shard(packed, "train-000000").stat().st_mtime_ns
    shard(packed).unlink()
    refused(packed, "as planned: pack it again")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", fail(KeyboardInterrupt()))
        shards._write_shard(Folder(packed / "imagenet" / "train", 3), range(7, 14), shard(packed))
    assert not list(shard(packed).parent.glob("*train-000001*"))  # whole, or not there
    run_script(monkeypatch, packed, "--per-shard", "7")
    assert shards_of(packed) == before
    assert shard(packed, "train-000000").stat().st_mtime_ns == kept
    assert "train 1 of 3 shards, was there\ntrain 2 of 3 shards\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--per-shard", "5"], "is of other images, or of shards of another size"),
        (["--per-shard", "0"], "--per-shard must be at least 1"),
        (["--splits", "test"], "write train, val or train,val"),
        ([], "there is no folder"),
    ],
)
def test_the_script_answers_mistakes_in_a_line(packed, monkeypatch, capsys, overrides, message):
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, packed if overrides else packed / "nowhere", *overrides)
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and message in line and line.count("\n") == 1


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_invalid_contents_and_packings_are_one_clear_line(packed):
    refused(packed, r"images of 3 classes: set task\.classes", classes=5)
    for files in ({"a/b.jpg": b"x"}, {"a/b.cls": b"0"}):
        write_tar(shard(packed), files)
        refused(packed, r"a/b lacks its image or its label")
    write_tar(shard(packed), {"a/b.jpg": b"x", "a/b.cls": b"n01440764"})
    refused(packed, "train-000001.tar cannot be read")
    index = shard(packed).parent / "classes.json"
    assert json.loads(index.read_text())["train"] == {"images": 18, "shards": 3}
    index.write_text("{")
    refused(packed, r"classes\.json cannot be read")


def test_an_image_that_is_damaged_within_a_whole_shard_is_left_out(packed, caplog):
    name, offset, size, _ = shards.index_shard(shard(packed))[0]
    with open(shard(packed), "r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    task = make(packed, form="shards")
    next(task.train_batches(0, 18))
    (message,) = caplog.messages
    assert f"{shard(packed)}:{name.decode()} is left out" in message


def test_shards_from_elsewhere_are_read_as_they_are(tree, tmp_path):
    files = sorted((tree / "imagenet").rglob("*.JPEG"))
    for _ in ("no folder", "no shard"):
        refused(tree, r"scripts/pack_imagenet\.py")
        shard(tree).parent.mkdir(exist_ok=True)
    for split in ("train", "val"):
        contents = {}
        for i, path in enumerate(path for path in files if split in path.parts):
            label, name = str(WNIDS.index(path.parent.name)) + "\n", f"{'long/' * 30}ä{i:05d}"
            contents |= {f"{name}.jpg": path.read_bytes(), f"{name}.cls": label.encode()}
            contents[f"{name}.json"] = b"{}"
        write_tar(shard(tree, f"{split}-0000"), contents)
    task = make(tree, form="shards")
    assert task.images["train"].labels_N.bincount().tolist() == [6, 6, 6]
    assert task.images["train"].classes == ["0", "1", "2"]
    assert task.images["train"].read(0) == files[0].read_bytes()
    for classes in (2, 4):
        refused(tree, "images of 3 classes: set task.classes", classes=classes)
