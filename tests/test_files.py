"""Locks exclude others while held, and leave no file behind."""

import os
import threading
import time
from pathlib import Path

import pytest

from npas.utils.files import filling, give_usual_mode, locked, reason


def test_a_lock_removes_its_file_and_folders_and_a_stale_file_does_not_block(tmp_path):
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old" / "new" / "newer" / ".lock"):
        assert (tmp_path / "old" / "new" / "newer" / ".lock").exists()
    assert not list((tmp_path / "old").iterdir())
    with locked(tmp_path / "new" / ".lock"):
        (tmp_path / "new" / "kept").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]
    (tmp_path / "new" / ".lock").touch()
    with locked(tmp_path / "new" / ".lock", wait=False):
        with pytest.raises(BlockingIOError), locked(tmp_path / "new" / ".lock", wait=False):
            raise AssertionError("it was held")
        assert (tmp_path / "new" / ".lock").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]


def test_a_lock_admits_one_thread_at_a_time(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(5):
            with locked(tmp_path / "new" / ".lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 30 and max(most) == 1
    assert not list(tmp_path.rglob(".lock"))


def test_a_folder_that_takes_no_files_is_an_error():
    with pytest.raises(FileNotFoundError), locked(Path("/proc/.lock")):
        raise AssertionError("it was held")


def test_a_folder_is_filled_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "out"
    for text in ("old", "new"):
        with filling(folder) as new:
            (new / "sub").mkdir()
            (new / "sub" / "file").write_text(text)
            (new / text).touch()
    files = {"old", "new", "sub"}
    assert {path.name for path in folder.iterdir()} == files
    assert (folder / "sub" / "file").read_text() == "new"
    with pytest.raises(OSError, match="full"), filling(folder) as new:
        (new / "old").write_text("half")
        raise OSError("full")
    assert {path.name for path in folder.iterdir()} == files
    assert (folder / "old").read_text() == ""


def test_a_file_gets_the_mode_of_a_new_one(tmp_path):
    path = tmp_path / "file"
    path.touch(mode=0o600)
    before = os.umask(0o027)
    try:
        give_usual_mode(path)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("it's 'this'\nand that"), "it's 'this'"),
        (ValueError("  \n"), "ValueError"),
        (KeyError("object 'x' is not there"), "object 'x' is not there"),
        (OSError(28, "No space left on device", "a.h5"), "No space left on device"),
        (OSError("Cannot open (name = 'a', error message = 'Too large', b = 1)"), "Too large"),
        (RuntimeError("x" * 300), "x" * 200),
    ],
)
def test_reasons_are_one_line(error, message):
    assert reason(error) == message
