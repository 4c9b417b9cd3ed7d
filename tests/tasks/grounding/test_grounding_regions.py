"""Regions stream from HDF5, from several processes; a damaged file is one clear line."""

import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from grounding_files import HEIGHT_OF, IDS, WIDTH, WIDTH_OF, proposals, write_features

from npas.tasks.grounding.phrases import Image
from npas.tasks.grounding.regions import Regions, places

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


def test_a_file_of_cites_own_tools_is_read(path):
    with h5py.File(path, "r+") as file:
        file["phrases"] = np.array([b"a+man", b"dog"])
        file["pairs"] = np.array([[b"100", b"a+man", b"0", b"1"]])
        file["100_a+man_0"] = np.zeros(16, np.float32)
        del file["101"]
        file["101"] = np.zeros((2, WIDTH + 9), np.float64)
    regions = Regions(path, IMAGES, WIDTH)
    assert regions.rows_I.tolist()[:3] == [12, 2, 14]
    assert all(values.dtype == np.float32 for values in regions.read(1, 9))


def test_where_a_box_lies_is_said_in_parts_of_its_image():
    boxes = np.array([[0, 0, 99, 59], [50, 15, 50, 29]], dtype=np.float32)
    expected = [[0, 0, 0.99, 59 / 60, 1], [0.5, 0.25, 0.5, 29 / 60, 15 / 6000]]
    found = places(boxes, IMAGES[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


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


def without(*names):
    return rows(lambda file: [file.__delitem__(name) for name in names])


def test_a_few_images_may_be_missing_and_are_named(path):
    without("102", "104", "106")(path)
    regions = Regions(path, IMAGES, WIDTH)
    assert regions.missing == ["102", "104", "106"]
    assert regions.rows_I.tolist() == [12, 13, 0, 12, 0, 14, 0, 13, 14]
    np.testing.assert_array_equal(regions.read(3, 99)[1], proposals(3, 12))


def test_no_more_than_a_hundredth_may_be_missing(tmp_path):
    names = [str(i) for i in range(400)]
    images = [Image(name, Path(name), WIDTH_OF, HEIGHT_OF) for name in names]
    write_features(tmp_path / "features.h5", names[4:], count=2)
    assert Regions(tmp_path / "features.h5", images, WIDTH).missing == names[:4]
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        del file["4"]
    with pytest.raises(ValueError, match=r"no features of 5 of 400 images \(first: 0\)"):
        Regions(tmp_path / "features.h5", images, WIDTH)


ROWS = np.ones((3, WIDTH + 9), np.float32)
DAMAGE = {
    "not there": (
        Path.unlink,
        r"as HDF5 \(No such file.*\): extract the regions' features",
    ),
    "no HDF5": (lambda p: p.write_bytes(b"PK"), r"cannot be read as HDF5 \(.*\): .*move it away"),
    "cut off": (cut, r"cannot be read as HDF5 \(.*truncated"),
    "images less": (
        without(*NAMES[3:7]),
        r"no features of 4 of 9 images \(first: 103\), and up to 1% may be missing: run"
        r" scripts/extract_regions\.py, which adds them",
    ),
    "no image": (without(*NAMES), r"no features of 9 of 9 images"),
    "a group": (rows(lambda f: (f.__delitem__("103"), f.create_group("103"))), "103 is damaged"),
    "no box": (replace(ROWS[:0]), r"103 is damaged \(it is float32 of shape \(0, 15\)"),
    "a vector": (replace(ROWS[0]), r"103 is damaged \(it is float32 of shape \(15,\)"),
    "words": (replace(np.array([[b"a"]])), r"103 is damaged \(it is"),
    "wider": (
        replace(np.ones((3, 8 + 9), np.float32)),
        r"image 103 has rows of 17 numbers, which are not task\.region_width=6 features and 4, 5 \+"
        r" 4 or 8 \+ 4 of a box: set task\.region_width=8",
    ),
    "narrower": (replace(ROWS[:, :7]), r"rows of 7 numbers.*set task\.region_width="),
    "scratched": (scratch, r"image 103 is damaged \("),
    "not finite": (with_row(0, 0, 5, 5, feature=np.nan), "it has numbers that are not finite"),
    "inside out": (with_row(9, 0, 5, 5), r"box 9 0 5 5 of image 103, 100x60 pixels, is empty"),
    "other pixels": (with_row(300, 0, 400, 5), r"box 300 0 400 5 .* lies outside it: boxes must"),
    "beyond all bounds": (with_row(-1e6, 0, 1e6, 5), r"box -1e\+06 0 1e\+06 5 .* lies outside it"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_one_clear_line(what, path):
    spoil, said = DAMAGE[what]
    spoil(path)
    with pytest.raises(ValueError, match=said) as error:
        regions = Regions(path, IMAGES, WIDTH)
        assert what not in ("images less", "wider", "cut off")  # told without reading all
        regions.read(3, 20)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
