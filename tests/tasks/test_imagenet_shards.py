"""Shards are WebDataset's, hold the folder's images to the byte, and say so if they are damaged."""

import io
import json
import os
import runpy
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from imagenet_files import WNIDS, make, write_tree

from npas.tasks import base
from npas.tasks.imagenet import shards
from npas.tasks.imagenet.folder import Folder
from npas.tasks.imagenet.tar import members

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pack_imagenet.py"


def run_script(monkeypatch: pytest.MonkeyPatch, root: Path, *words: str) -> None:
    places = [str(root / name) for name in ("imagenet", "imagenet-shards")]
    monkeypatch.setattr(sys, "argv", ["pack_imagenet.py", *places, *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree, packed by the script: three shards of 7, 7 and 4 images, and two of val's 9."""
    root = write_tree(tmp_path / "data")
    run_script(monkeypatch, root, "--per-shard", "7", "--quiet")
    return root


def shard(root: Path, name: str = "train-000001") -> Path:
    return root / "imagenet-shards" / f"{name}.tar"


def test_shards_are_read_equal_to_the_folder(tree: Path) -> None:
    folder, packed = make(tree), make(tree, form="shards")
    for split in ("train", "val"):
        one, other = folder.images[split], packed.images[split]
        assert torch.equal(one.labels_N, other.labels_N) and one.classes == other.classes
        assert all(one.read(i) == other.read(i) for i in range(len(one.labels_N)))
        assert one.total_bytes() == other.total_bytes()
    assert packed.images["train"].name(8) == f"{shard(tree)}:{WNIDS[1]}/{WNIDS[1]}_2.jpg"
    assert packed.inspect()["train"].endswith(" bytes in 3 shards")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_shards_gives_the_same_batches(tree: Path, workers: int) -> None:
    made = [
        list(base.batches(make(tree, form=form, held_out=2), 1, 4, first_step=1, workers=workers))
        for form in ("folder", "shards")
    ]
    assert len(made[0]) == 3
    for one, other in zip(*made, strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


def test_a_shard_is_a_plain_tar_of_pairs_the_same_bytes_each_time(
    tree: Path, tmp_path: Path
) -> None:
    with tarfile.open(shard(tree)) as tar:
        names = tar.getnames()
        assert names[:2] == [f"{WNIDS[1]}/{WNIDS[1]}_1.cls", f"{WNIDS[1]}/{WNIDS[1]}_1.jpg"]
        label, image = (tar.extractfile(name) for name in names[:2])
        assert label is not None and label.read() == b"1"
        path = tree / "imagenet" / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG"
        assert image is not None and image.read() == path.read_bytes()
    folder = Folder(tree / "imagenet" / "train", 3)
    shards.pack({"train": folder}, tmp_path / "again", 7)
    assert (tmp_path / "again" / "train-000001.tar").read_bytes() == shard(tree).read_bytes()


def test_the_reader_of_headers_finds_what_tarfile_does(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    names = ["a/b.jpg", "x" * 150 + "/" + "y" * 120 + ".jpg", "ä/ö.cls", "z.json"]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(path, "w", format=form) as tar:
            folder = tarfile.TarInfo("a")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for i, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 700 * i, 1.5 + i  # type: ignore[assignment]
                tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
        with tarfile.open(path) as tar:
            expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
        assert [(m.name, m.offset, m.size) for m in members(path)] == expected


def test_packing_goes_on_where_it_was_broken_off(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = {path.name: path.read_bytes() for path in shard(tree).parent.iterdir()}
    kept = shard(tree, "train-000000").stat().st_mtime_ns
    shard(tree).unlink()
    (shard(tree).parent / ".train-000001.tar.tmp").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"lacks train-000001\.tar, and has 000002"):
        make(tree, form="shards")
    run_script(monkeypatch, tree, "--per-shard", "7")
    assert {path.name: path.read_bytes() for path in shard(tree).parent.iterdir()} == before
    assert shard(tree, "train-000000").stat().st_mtime_ns == kept
    assert "train 1 of 3 shards, was there\ntrain 2 of 3 shards\n" in capsys.readouterr().out


def test_a_shard_is_whole_or_not_there(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tree).unlink()

    def stop(*anything: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        shards._write_shard(Folder(tree / "imagenet" / "train", 3), range(7, 14), shard(tree))
    assert [p.name for p in shard(tree).parent.glob("*1.tar*")] == ["val-000001.tar"]


def test_the_last_shard_is_missed_too(tree: Path) -> None:
    shard(tree, "train-000002").unlink()
    with pytest.raises(ValueError, match=r"14 train images in 2 shards, and 18 in 3 were to be"):
        make(tree, form="shards")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--per-shard", "5"], "is of other images, or of shards of another size"),
        (["--per-shard", "0"], "--per-shard must be at least 1"),
        (["--splits", "test"], "write train, val or train,val"),
    ],
)
def test_the_script_answers_mistakes_in_a_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str],
    said: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, tree, *words)
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and said in line and line.count("\n") == 1


def test_the_script_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        run_script(monkeypatch, tmp_path)
    assert "there is no folder" in capsys.readouterr().err


def test_a_shard_of_other_images_is_not_taken_for_ours(tree: Path) -> None:
    os.replace(shard(tree, "train-000000"), shard(tree))
    with pytest.raises(ValueError, match=r"train-000001\.tar holds other images: delete it"):
        shards.pack({"train": Folder(tree / "imagenet" / "train", 3)}, shard(tree).parent, 7)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_shard_cut_short_anywhere_is_one_clear_line(tree: Path) -> None:
    whole = shard(tree).read_bytes()
    ends = sorted({member.offset + member.size for member in members(shard(tree))})
    last = -(-ends[-1] // 512) * 512
    for length in [0, 100, 512, 1000, *ends[:4], ends[-1] - 1, last, last + 100]:
        shard(tree).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"train-000001\.tar is cut short: .*again") as error:
            make(tree, form="shards")
        assert "\n" not in str(error.value)


def test_damaged_headers_and_odd_contents_are_one_clear_line(tree: Path) -> None:
    whole = shard(tree).read_bytes()
    shard(tree).write_bytes(whole[:1030] + b"\7" + whole[1031:])
    with pytest.raises(ValueError, match=r"damaged at byte 1,024: make it again"):
        make(tree, form="shards")
    for files, said in [
        ({"a/b.jpg": b"x"}, r"a/b has no label \(\.cls\); pack it again"),
        ({"a/b.cls": b"0"}, r"a/b has no image \(\.jpg\); pack it again"),
        ({"a/b.jpg": b"x", "a/b.cls": b"n01440764"}, r"a/b\.cls holds no class number"),
        ({"a/b.jpg": b"x", "a/b.png": b"x", "a/b.cls": b"0"}, r"two images named a/b"),
    ]:
        write_tar(shard(tree), files)
        with pytest.raises(ValueError, match=said):
            make(tree, form="shards")


def test_an_image_that_is_damaged_within_a_whole_shard_is_left_out(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = list(members(shard(tree)))[1]
    with open(shard(tree), "r+b") as file:
        file.seek(found.offset)
        file.write(bytes(found.size))
    task = make(tree, form="shards")
    batch = next(task.train_batches(0, 18))
    task.loss(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)), batch)
    assert len(caplog.messages) == 1
    assert f"{shard(tree)}:{found.name} is left out" in caplog.messages[0]


def test_a_shard_that_shrinks_while_it_is_read_is_no_crash(tree: Path) -> None:
    task = make(tree, form="shards")
    with open(shard(tree, "train-000002"), "r+b") as file:
        file.truncate(600)
    assert next(task.train_batches(0, 18)).targets.bincount().tolist()[2] < 6
    with pytest.raises(OSError, match="shorter"):
        task.images["train"].read(17)


def test_shards_from_elsewhere_are_read_as_they_are(tmp_path: Path) -> None:
    files = sorted((write_tree(tmp_path / "data") / "imagenet").rglob("*.JPEG"))
    for split in ("train", "val"):
        own = [path for path in files if split in path.parts]
        contents = {}
        for i, path in enumerate(own):
            label = str(WNIDS.index(path.parent.name)) + "\n"
            contents |= {f"{i:05d}.jpg": path.read_bytes(), f"{i:05d}.cls": label.encode()}
            contents[f"{i:05d}.json"] = b"{}"
        target = tmp_path / "data" / "imagenet-shards"
        target.mkdir(exist_ok=True)
        write_tar(target / f"{split}-0000.tar", contents)
    task = make(tmp_path / "data", form="shards")
    assert task.images["train"].labels_N.bincount().tolist() == [6, 6, 6]
    assert task.images["train"].classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"labels 0 to 2, and task\.classes=2 has 0 to 1"):
        make(tmp_path / "data", form="shards", classes=2)
    with pytest.raises(ValueError, match=r"no train image of class 3 \(3\)"):
        make(tmp_path / "data", form="shards", classes=4)


def test_a_list_of_classes_that_does_not_fit_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"names 3 classes, not the 5 .*set task\.classes=3"):
        make(tree, form="shards", classes=5)
    index = shard(tree).parent / "classes.json"
    assert json.loads(index.read_text())["train"] == {"images": 18, "shards": 3}
    index.write_text("{")
    with pytest.raises(ValueError, match=r"classes\.json is damaged"):
        make(tree, form="shards")


@pytest.mark.parametrize("what", ["no folder", "no shard"])
def test_missing_shards_are_one_line_that_says_how_to_make_them(tmp_path: Path, what: str) -> None:
    if what == "no shard":
        (tmp_path / "imagenet-shards").mkdir()
    with pytest.raises(ValueError, match=r"scripts/pack_imagenet\.py"):
        make(tmp_path, form="shards")
