"""A rendered set is written once, completely, under a name that hashes its settings."""

import multiprocessing
import stat
import time

import pytest

from npas.tasks.scenes import dataset
from npas.tasks.scenes.dataset import Made
from npas.tasks.scenes.world import Difficulty


def ensure(root, write, **changes):
    given = {"form": "scan", "difficulty": Difficulty(), "made": Made(), "sizes": {"width": 8}}
    return dataset.ensure(root, **{**given, **changes}, write=write)


def write(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("whole")


def refuse(folder):
    raise AssertionError("written twice")


def test_a_set_is_written_once(tmp_path):
    root = tmp_path / "data"  # which is made
    folder = ensure(root, write)
    assert folder.parent == root and (folder / "inner" / "file").read_text() == "whole"
    assert ensure(root, refuse) == folder
    assert [path.name for path in root.iterdir()] == [folder.name]
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(root.stat().st_mode)


def test_whatever_decides_its_bytes_decides_its_name(tmp_path):
    ways = [
        {},
        {"form": "other"},
        {"difficulty": Difficulty(jitter=0.2)},
        {"made": Made(train=3)},
        {"made": Made(seed=1)},
        {"sizes": {"width": 9}},
    ]
    assert len({ensure(tmp_path, write, **changes) for changes in ways}) == len(ways)
    for keys in ({"train": 0}, {"val": 10**8}, {"seed": -1}):
        with pytest.raises(ValueError, match=rf"task\.made\.{next(iter(keys))} must be at"):
            Made(**keys)


def forever(root, begun):
    def write(folder):
        (folder / "half").write_text("of it")
        begun.set()
        time.sleep(60)

    ensure(root, write)


def test_what_a_killed_process_leaves_is_taken_for_no_set(tmp_path, fork):
    begun = multiprocessing.get_context("fork").Event()
    process = fork(forever, tmp_path, begun)
    assert begun.wait(30)
    process.kill()
    process.join()
    folder = ensure(tmp_path, write)
    assert [path.name for path in folder.iterdir()] == ["inner"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    def full(folder):
        (folder / "half").write_text("of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"scenes-\w{8} cannot be written \(No space left on dev"):
        ensure(tmp_path, full)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .*: set data.root to a folder"):
        ensure(file, write)
