"""Region features are whole or not there, whatever ends the process that writes them."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from npas.tasks.grounding import region_store
from npas.tasks.grounding.region_store import Store

SETTINGS = {"network": "a", "most": 3}
TARGET = Path("test_features.h5")
PARTS = Path("test_features.parts")


def rows(name: str) -> np.ndarray:
    """Return an image's matrix, which its name decides."""
    return np.random.default_rng(int(name)).random((3, 20)).astype(np.float32)


def fill(count: int, per_part: int = 2) -> int:
    """Store the images that are not there yet; return how many there are."""
    store = Store(TARGET, SETTINGS, per_part)
    for name in (str(i) for i in range(count)):
        if name not in store.done:
            store.add(name, rows(name))
    return store.finish()


def check(count: int) -> None:
    """Find every image in the file, as it was given, and nothing beside the file."""
    with h5py.File(TARGET, "r") as file:
        assert sorted(file) == sorted(str(i) for i in range(count))
        for name in file:
            assert file[name].dtype == np.float32
            np.testing.assert_array_equal(file[name][()], rows(name))
    assert [path.name for path in Path().iterdir()] == [TARGET.name]


@pytest.mark.parametrize("per_part", [1, 2, 5, 100])
def test_parts_become_one_file(per_part: int) -> None:
    assert fill(5, per_part) == 5
    check(5)


def test_more_images_are_added_and_what_is_there_is_kept() -> None:
    fill(3)
    assert Store(TARGET, SETTINGS, 2).done == {"0", "1", "2"}
    before = TARGET.stat().st_mtime_ns
    assert fill(3) == 3 and TARGET.stat().st_mtime_ns == before  # nothing to do, nothing written
    assert fill(7) == 7
    check(7)


def test_no_image_makes_no_file() -> None:
    assert fill(0) == 0
    assert list(Path().iterdir()) == []


# Ends with a kill -9 at the n-th call of a function, counted over parts and the joined file.
KILLED = """
import os, shutil, signal, sys
sys.path.append(sys.argv[3])
import test_region_store
module, name = sys.argv[1].split(".")
left, true = int(sys.argv[2]), getattr(sys.modules[module], name)
def count(*given, **keys):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*given, **keys)
setattr(sys.modules[module], name, count)
test_region_store.fill(5)
"""


@pytest.mark.parametrize(
    ("function", "call", "kept"),
    [
        ("os.replace", 2, 2),  # before the second part has its name
        ("os.fsync", 4, 5),  # while parts are joined
        ("shutil.rmtree", 1, 5),  # before the parts are gone
    ],
)
def test_a_kill_loses_no_more_than_the_part_it_hits(function: str, call: int, kept: int) -> None:
    words = [sys.executable, "-c", KILLED, function, str(call), str(Path(__file__).parent)]
    assert subprocess.run(words, timeout=60).returncode == -signal.SIGKILL
    assert len(Store(TARGET, SETTINGS, 2).done) == kept
    assert fill(5) == 5
    check(5)


@pytest.mark.parametrize("joining", [False, True])
def test_a_full_disk_is_one_line_and_what_was_kept_goes_on(
    joining: bool,
) -> None:
    store = Store(TARGET, SETTINGS, 2)
    for name in "0123":
        store.add(name, rows(name))
    largest = max(path.stat().st_size for path in PARTS.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a file may grow to: as a full disk says it, the file is too large.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 50 if joining else 100, before[1]))
    try:
        with pytest.raises(ValueError, match=r"h5 cannot be written \((F|f)ile too large\): fix"):
            store.finish() if joining else [store.add(name, rows(name)) for name in "45"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not TARGET.exists() and not list(Path().rglob("*.tmp"))
    assert fill(6) == 6
    check(6)


def test_too_little_room_to_join_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(region_store.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ValueError, match=r"GB more while parts are joined, and 0\.0 are free"):
            fill(5)
    assert len(Store(TARGET, SETTINGS, 2).done) == 5
    assert fill(5) == 5
    check(5)


@pytest.mark.parametrize("which", ["file", "part"])
def test_a_damaged_file_is_named(which: str) -> None:
    fill(4)
    path = TARGET
    if which == "part":
        PARTS.mkdir()
        path = PARTS / "part-000000.h5"
        TARGET.rename(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\): remove it, and the same"):
        Store(TARGET, SETTINGS, 2)
    path.unlink()
    assert fill(4) == 4


def test_files_that_were_made_otherwise_do_not_mix() -> None:
    fill(2)
    with pytest.raises(ValueError, match=r'made otherwise \(\{"most": 3, "network": "a"\}\): ask'):
        Store(TARGET, SETTINGS | {"most": 4}, 2)
    with h5py.File(TARGET, "w") as file:
        file["0"] = rows("0")
    # To ask that tool for the same again would lead nowhere.
    with pytest.raises(ValueError, match=r"made by another tool, .* move it away, and the same"):
        Store(TARGET, SETTINGS, 2)
    TARGET.rename("elsewhere.h5")
    assert fill(2) == 2
