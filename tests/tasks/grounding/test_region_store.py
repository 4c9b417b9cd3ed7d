"""Region features are written atomically, whatever ends the process."""

import os
import resource
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from region_store import Store

SETTINGS = {"network": "a", "most": 3}
TARGET = Path("test_features.h5")
PARTS = Path("test_features.parts")


def rows(name):
    """Return an image's matrix, which its name decides."""
    return np.random.default_rng(int(name)).random((3, 20)).astype(np.float32)


def fill(count):
    """Store the images that are not there yet; return how many there are."""
    store = Store(TARGET, SETTINGS)
    for name in (str(i) for i in range(count)):
        if name not in store.done:
            store.add(name, rows(name))
    return store.finish()


def check(count):
    """Find every image in the file, as it was given, and nothing beside the file."""
    with h5py.File(TARGET, "r") as file:
        assert sorted(file) == sorted(str(i) for i in range(count))
        for name in file:
            assert file[name].dtype == np.float32
            np.testing.assert_array_equal(file[name][()], rows(name))
    assert [path.name for path in Path().iterdir()] == [TARGET.name]


def test_more_images_are_added_and_what_is_there_is_kept():
    assert fill(0) == 0 and not list(Path().iterdir())
    assert fill(3) == 3
    check(3)
    assert Store(TARGET, SETTINGS).done == {"0", "1", "2"}
    before = TARGET.stat().st_mtime_ns
    assert fill(3) == 3 and TARGET.stat().st_mtime_ns == before  # nothing to do, nothing written
    assert fill(7) == 7
    check(7)


class Killed(BaseException):
    """Whatever ends the process."""


@pytest.mark.parametrize(
    ("function", "call", "kept"),
    [
        ("os.replace", 2, 1),  # before the second image has its name
        ("os.fsync", 6, 5),  # while all are joined
        ("shutil.rmtree", 1, 5),  # before their own files are gone
    ],
)
def test_an_end_loses_no_more_than_the_image_it_hits(function, call, kept, monkeypatch):
    module, name = function.split(".")
    true, calls = getattr(sys.modules[module], name), iter(range(1, 99))

    def killed(*given, **keys):
        if next(calls) == call:
            raise Killed
        return true(*given, **keys)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(function, killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # which a kill does not do either
        fill(5)
    assert len(Store(TARGET, SETTINGS).done) == kept
    assert fill(5) == 5
    check(5)


@pytest.mark.parametrize("joining", [False, True])
def test_a_full_disk_is_one_line_and_what_was_kept_goes_on(joining):
    store = Store(TARGET, SETTINGS)
    for name in "0123":
        store.add(name, rows(name))
    largest = max(path.stat().st_size for path in PARTS.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a file may grow to: as a full disk says it, the file is too large.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 50 if joining else 100, before[1]))
    try:
        with pytest.raises(ValueError, match=r"h5 cannot be written \((F|f)ile too large\): fix"):
            store.finish() if joining else store.add("4", rows("4"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not TARGET.exists() and not list(Path().rglob("*.tmp"))
    assert fill(6) == 6
    check(6)


def test_a_damaged_file_is_named():
    fill(4)
    os.truncate(TARGET, TARGET.stat().st_size // 2)
    with pytest.raises(
        ValueError, match=rf"{TARGET} cannot be read \(.*\): remove it, and the same"
    ):
        Store(TARGET, SETTINGS)
