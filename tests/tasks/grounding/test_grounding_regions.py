"""Regions stream from HDF5, from several processes; a damaged file is one clear line."""

import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from grounding_files import HEIGHT_OF, IDS, WIDTH, WIDTH_OF, proposals, write_features
from helpers import one_line

from npas.tasks.grounding.reading import Image
from npas.tasks.grounding.regions import Regions

NAMES = IDS["train"]
IMAGES = [Image(name, Path(f"{name}.jpg"), WIDTH_OF, HEIGHT_OF) for name in NAMES]


@pytest.fixture
def path(tmp_path):
    write_features(tmp_path / "train_features.h5", NAMES)
    return tmp_path / "train_features.h5"


@pytest.mark.parametrize("between", [0, 5, 8])
def test_features_come_first_and_the_box_last_whatever_is_between(between, tmp_path):
    path = tmp_path / "features.h5"
    write_features(path, NAMES, between=between)
    regions = Regions(path, IMAGES, WIDTH)
    assert regions.rows_I.tolist() == [12, 13, 14] * 3
    features_RD, boxes_R4 = regions.read(4, most=100)
    expected = np.random.default_rng(4).normal(size=(13, WIDTH)).astype(np.float32)
    assert features_RD.dtype == boxes_R4.dtype == np.float32
    np.testing.assert_array_equal(features_RD, expected)
    np.testing.assert_array_equal(boxes_R4, proposals(4, 13))
    best_RD, best_R4 = regions.read(4, most=5)
    np.testing.assert_array_equal(best_RD, features_RD[:5])
    np.testing.assert_array_equal(best_R4, boxes_R4[:5])


def opened(path):
    """List this process's descriptors of a file."""
    own = Path("/proc/self/fd")
    return [link.name for link in own.iterdir() if link.exists() and link.samefile(path)]


def read_all(regions, queue):
    inherited = opened(regions.path)
    sums = [regions.read(i % 9, 20)[0].sum().item() for i in range(180)]
    queue.put((sums, inherited, len(opened(regions.path))))


def test_forked_processes_read_what_their_parent_does(path, fork):
    regions = Regions(path, IMAGES, WIDTH)
    sums = [regions.read(i, 20)[0].sum().item() for i in range(len(NAMES))]  # it is open here now
    assert len(opened(path)) == 1
    queue = multiprocessing.get_context("fork").Queue()
    processes = [fork(read_all, regions, queue) for _ in range(3)]
    for _ in processes:
        assert queue.get(timeout=60) == (sums * 20, [], 1)  # each opens it for itself
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert regions.read(0, 20)[0].sum().item() == sums[0]
    regions.close()
    assert opened(path) == []
    copied = pickle.loads(pickle.dumps(regions))  # as processes that are not forked get it
    assert copied.read(0, 20)[0].sum().item() == sums[0]


def rows(change):
    def spoil(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return spoil


def replace(values):
    def change(file):
        del file["103"]
        file["103"] = values

    return rows(change)


def with_row(*box, feature=0.0):
    row = [feature] * WIDTH + [0] * 5 + list(box)
    return replace(np.array([row, row], dtype=np.float32))


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def scratch(path):
    """Spoil the stored values of one image, as a bad disk does."""
    with h5py.File(path, "r") as file:
        stored = file["103"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[stored.byte_offset : stored.byte_offset + stored.size] = b"\xff" * stored.size
    path.write_bytes(data)


def test_no_more_than_a_hundredth_may_be_missing(tmp_path):
    names = [str(i) for i in range(400)]
    images = [Image(name, Path(name), WIDTH_OF, HEIGHT_OF) for name in names]
    write_features(tmp_path / "features.h5", names[4:], count=2)
    assert Regions(tmp_path / "features.h5", images, WIDTH).missing == names[:4]
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        del file["4"]
    with pytest.raises(ValueError, match=r"no features of 5 of 400 images \(first: 0\)"):
        Regions(tmp_path / "features.h5", images, WIDTH)


NO_ROWS = r"image 103 has numbers of shape \(.*\), not rows of task\.region_width=6 features and 4"
NO_BOX = r"image 103, 100x60 pixels, has numbers that are not finite, or boxes that are empty or"
DAMAGE = {
    "not there": (Path.unlink, r"cannot be read \(No such file.*\): extract the regions' features"),
    "cut off": (cut, r"cannot be read \(.*truncated"),
    "a group": (rows(lambda f: (f.__delitem__("103"), f.create_group("103"))), NO_ROWS),
    "wider": (replace(np.ones((3, 8 + 9), np.float32)), rf"{NO_ROWS}.*task\.region_width=8, or"),
    "scratched": (scratch, r"image 103 cannot be read \("),
    "not finite": (with_row(0, 0, 5, 5, feature=np.nan), NO_BOX),
    "inside out": (with_row(9, 0, 5, 5), NO_BOX),
    "beyond all bounds": (with_row(-1e6, 0, 1e6, 5), NO_BOX),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_one_clear_line(what, path):
    spoil, message = DAMAGE[what]
    spoil(path)
    with one_line(message):
        regions = Regions(path, IMAGES, WIDTH)
        regions.read(3, 20)
