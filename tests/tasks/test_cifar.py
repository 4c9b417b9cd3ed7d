"""CIFAR is read as published, verified first, and augmented as in the papers."""

import hashlib
import os
import pickle
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import write_cifar
from helpers import Call

from npas.config import DataConfig
from npas.tasks import cifar
from npas.tasks.cifar import RECIPES


class TinySet:
    """A tiny CIFAR set on disk, packed as an archive beside it as well."""

    def __init__(self, root, classes):
        self.root, self.classes = root, classes
        self.published = write_cifar(root, classes, *((100, 20) if classes == 10 else (200, 200)))
        self.folder = root / self.published.base_folder
        self.packed = root / "packed" / self.published.filename
        self.packed.parent.mkdir()
        with tarfile.open(self.packed, "w:gz") as tar:
            tar.add(self.folder, self.folder.name)
        self.published.url = self.packed.as_uri()
        self.sha256 = hashlib.sha256(self.packed.read_bytes()).hexdigest()

    def task(self, val_fraction=0.1, seed=0, config=None, published=False, **changes):
        """Make the task, with this set as the published one unless `published`."""
        config = config or cifar.Config(classes=self.classes)
        data = {"root": str(self.root), "val_fraction": val_fraction, "download": False}
        data = DataConfig(**data | changes)
        task = cifar.Task(config, data, seed=seed, device=torch.device("cpu"))
        if not published:
            task.published, task.sha256 = self.published, self.sha256
        return task


@pytest.fixture
def ten(tmp_path):
    """CIFAR-10 in a folder of the test's own, to be spoiled at will."""
    return TinySet(tmp_path / "data", 10)


@pytest.fixture(scope="session")
def make_cifar(tmp_path_factory):
    """Return a maker of CIFAR tasks that are ready for use."""
    sets = {n: TinySet(tmp_path_factory.mktemp("cifar") / str(n), n) for n in (10, 100)}

    def make(classes=10, val_fraction=0.1, seed=0, **keys):
        task = sets[classes].task(val_fraction, seed, cifar.Config(classes=classes, **keys))
        task.setup()
        return task

    return make


# --- reading


@pytest.mark.parametrize(("classes", "train"), [(10, 100), (100, 200)])
def test_the_published_format_is_read(make_cifar, classes, train):
    task = make_cifar(classes, val_fraction=0.0)
    assert (task.name, task.spec.num_classes) == (f"cifar{classes}", classes)
    assert task.parts["train"].images.shape == (train, 40, 40, 3)
    assert task.parts["train"].labels.tolist()[:12] == [n % classes for n in range(12)]
    pixels = task.parts["test"].images
    assert pixels.dtype == torch.uint8
    assert pixels[0, 5, 7, :2].tolist() == [6, 8]  # row and column of the pixel, counted from 1
    assert not task.has_validation


def test_a_tenth_of_every_class_is_held_out_the_same_for_every_seed(make_cifar):
    task, other = make_cifar(), make_cifar(seed=1)
    assert task.has_validation
    assert task.parts["val"].labels.bincount().tolist() == [1] * 10
    assert task.parts["train"].labels.bincount().tolist() == [9] * 10
    held = set(task.parts["val"].images[:, 0, 0, 2].tolist())
    trained = set(task.parts["train"].images[:, 20, 20, 2].tolist())
    assert held | trained == set(range(1, 101)) and not held & trained
    assert torch.equal(task.parts["val"].images, other.parts["val"].images)


def test_halved_images_are_the_means_of_their_squares(make_cifar):
    whole, half = make_cifar(), make_cifar(image_size=16)
    assert half.spec.input_shape == (3, 16, 16)
    assert half.parts["train"].images.shape[1:] == (20, 20, 3)  # padded by 2 each side
    squares = whole.parts["test"].images.unfold(1, 2, 2).unfold(2, 2, 2)
    assert torch.equal(half.parts["test"].images, squares.float().mean((-1, -2)).round().byte())


def test_a_copy_is_refused_or_read_where_it_is_asked_for_and_recorded(ten, tmp_path, caplog):
    with pytest.raises(ValueError, match=r"data_batch_1 is not as published .*data\.verify=warn"):
        ten.task(published=True).setup()
    true, copy = ten.task(verify="warn"), ten.task(published=True, verify="warn")
    true.setup()
    assert true.compared.published is True and not caplog.records
    copy.setup()
    assert copy.compared.published is False and len(copy.compared.found) == 6
    assert len(caplog.records) == 1 and "data_batch_1 is not as published" in caplog.text
    assert torch.equal(copy.parts["test"].images, true.parts["test"].images)
    file, md5 = "cifar-10-batches-py/test_batch", ten.published.test_list[0][1]
    assert true.inspect()[file] == f"md5 {md5}, as published"
    assert true.inspect()["train"] == "90 images of 10 classes, 9 of each"
    assert copy.inspect()[file].startswith(f"md5 {md5}; published: md5 ")
    # Another archive that was put there by hand is a copy, too.
    shutil.copytree(ten.packed.parent, tmp_path / "new")
    with pytest.raises(ValueError, match=r"sha256 .*data\.verify=warn uses it as it is"):
        ten.task(root=str(tmp_path / "new"), published=True).setup()
    copy = ten.task(root=str(tmp_path / "new"), published=True, verify="warn")
    copy.setup()
    assert copy.compared.published is False and copy.parts


def test_a_missing_set_is_one_line_that_says_what_to_put_where(ten, tmp_path):
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz") as error:
        ten.task(root=str(tmp_path / "new")).setup()
    for part in ("data.root=", "new", "cifar-10-batches-py", "data.download=true"):
        assert part in str(error.value)
    ten.published.url = (tmp_path / "absent").as_uri()
    with pytest.raises(ValueError, match=r"failed .*: put it at .*/cifar-10-py\S*\.gz$") as second:
        ten.task(root=str(tmp_path / "new"), download=True).setup()
    assert "\n" not in str(error.value) + str(second.value)
    assert not (tmp_path / "new").exists()


def test_many_at_once_download_verify_and_unpack_once(ten, make_cifar, tmp_path, caplog):
    caplog.set_level("INFO")
    tasks = [ten.task(root=str(tmp_path / "new"), download=True) for _ in range(4)]
    threads = [threading.Thread(target=task.setup) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.messages.count(f"downloading {ten.published.url}") == 1
    for task in tasks:
        assert torch.equal(task.parts["train"].images, make_cifar().parts["train"].images)
    there = {path.name for path in (tmp_path / "new").iterdir()}
    assert there == {ten.published.filename, ten.published.base_folder}
    shutil.rmtree(tmp_path / "new" / ten.published.base_folder)
    ten.task(root=str(tmp_path / "new")).setup()  # an archive by hand needs no download


def test_nothing_is_unpickled_before_its_sum_is_the_published_one(ten, monkeypatch):
    path = ten.folder / "data_batch_1"
    data, malicious = path.read_bytes(), pickle.dumps({"data": Call(os.mkdir, "owned")})
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "unpickle", lambda data: pytest.fail("it was unpickled"))
        for damaged in (data[:-100], malicious):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="data_batch_1 is not as published"):
                ten.task().setup()
    for damaged in (malicious, data[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data_batch_1 cannot be read \(not a pickle"):
            ten.task(verify="warn").setup()
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0] * 19}, "one label below 10 per image"),
        ({"labels": [10] * 20}, "one label below 10 per image"),
        ({"data": np.zeros((20, 3072))}, "rows of 3072 bytes"),
        ({"data": "pixels"}, "rows of 3072 bytes"),
    ],
)
def test_contents_of_another_form_are_refused(change, message):
    good = {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 20}
    with pytest.raises(ValueError, match=message):
        cifar.parse(good | change, 10)
    with pytest.raises(ValueError, match="lacks 'data' or 'fine_labels'"):
        cifar.parse(good, 100)


# --- augmentation


def pixels(batch):
    """Undo the normalisation: BxCxHxW floats back to bytes."""
    recipe = RECIPES[10]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    return (batch * std + mean).round()


@pytest.fixture(scope="module")
def epochs(make_cifar):
    """Twenty epochs of the tiny set: 1,800 images whose pixels tell where they come from."""
    task = make_cifar()
    return torch.cat([b.inputs for epoch in range(20) for b in task.train_batches(epoch, 90)])


def test_crops_cover_every_offset_evenly_and_flips_take_half(epochs):
    inside = pixels(epochs)
    tops, lefts, flips = Counter(), Counter(), Counter()
    for image in inside:
        # Cutout hides pixels as the mean, 125 and 123: true rows and columns are 1 to 32.
        rows, columns = image[0], image[1]
        seen = (rows >= 1) & (rows <= 32) & (columns >= 1) & (columns <= 32)
        y, x = (int(v) for v in seen.nonzero()[0])
        row, column = int(rows[y, x]) - 1, int(columns[y, x]) - 1
        line = columns[y][seen[y]]
        flipped = bool(line[0] > line[-1])
        tops[row - y + 4] += 1
        lefts[(column - (31 - x) if flipped else column - x) + 4] += 1
        flips[flipped] += 1
    assert set(tops) == set(lefts) == set(range(9))
    assert max((*tops.values(), *lefts.values())) < 280 and min(tops.values()) > 130  # about 200
    assert 800 < flips[True] < 1000


def test_cutout_takes_a_square_of_16_or_what_of_it_is_inside(epochs):
    hidden = (epochs == 0).all(1)
    areas = Counter(int(area) for area in hidden.sum((1, 2)))
    assert max(areas) == 16 * 16
    assert min(areas) >= 8 * 8
    # The centre is any pixel: 17 of 32 rows leave the whole height inside.
    assert areas[256] / len(epochs) == pytest.approx((17 / 32) ** 2, abs=0.05)
    for square in hidden[:100]:
        rows, columns = square.any(1).sum(), square.any(0).sum()
        assert rows * columns == square.sum()


def test_cutout_is_on_unless_it_is_switched_off(make_cifar):
    plain, cut = (next(make_cifar(cutout=on).train_batches(0, 90)).inputs for on in (False, True))
    assert plain.is_contiguous()
    hidden = (cut == 0).all(1, keepdim=True)
    assert not (plain == 0).all(1).any() and hidden.any()
    assert torch.equal(plain.masked_fill(hidden, 0.0), cut)  # the same crops and flips
