"""CIFAR is read as published, verified first, and a set that is missing is one clear line."""

import dataclasses
import os
import pickle
import shutil
import tarfile
import threading
from pathlib import Path

import pytest
import torch

from npas.tasks.cifar import task as cifar


@pytest.mark.parametrize(("classes", "train"), [(10, 100), (100, 200)])
def test_reads_the_published_format(make_cifar, classes: int, train: int) -> None:
    task = make_cifar(classes, val_fraction=0.0)
    assert task.name == f"cifar{classes}"
    assert task.parts["train"].images.shape == (train, 40, 40, 3)
    assert task.parts["train"].labels.tolist()[:12] == [n % classes for n in range(12)]
    pixels = task.parts["test"].images
    assert pixels[0, 5, 7, :2].tolist() == [6, 8]  # row and column of the pixel, counted from 1
    assert pixels.dtype == torch.uint8
    assert task.spec.num_classes == classes


def test_45k_holds_out_a_tenth_of_every_class_and_50k_nothing(make_cifar) -> None:
    task = make_cifar(10, val_fraction=0.1)
    assert task.has_validation and not make_cifar(10, val_fraction=0.0).has_validation
    assert task.parts["val"].labels.bincount().tolist() == [1] * 10
    assert task.parts["train"].labels.bincount().tolist() == [9] * 10
    held = set(task.parts["val"].images[:, 0, 0, 2].tolist())
    trained = set(task.parts["train"].images[:, 20, 20, 2].tolist())
    assert held | trained == set(range(1, 101)) and not held & trained


def test_no_seed_moves_what_is_held_out(make_cifar) -> None:
    one, other = make_cifar(seed=0), make_cifar(seed=1)
    assert torch.equal(one.parts["val"].images, other.parts["val"].images)


def test_the_published_sums_are_the_default() -> None:
    ten, hundred = cifar.published_archive(10), cifar.published_archive(100)
    assert ten.sha256.startswith("6d958be07457") and hundred.sha256.startswith("85cd44d02ba6")
    assert (len(ten.sha256), len(hundred.sha256)) == (64, 64)
    assert list(ten.train) == [f"data_batch_{n}" for n in range(1, 6)]
    assert hundred.test == {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}


def test_other_files_than_the_published_are_refused(ten) -> None:
    with pytest.raises(ValueError, match=r"data_batch_1 is not as published .*data\.verify=warn"):
        ten.task(archive=None).setup()


def test_halved_images_are_the_means_of_their_squares(make_cifar) -> None:
    whole, half = make_cifar(10), make_cifar(10, image_size=16)
    assert half.spec.input_shape == (3, 16, 16)
    assert half.parts["train"].images.shape[1:] == (20, 20, 3)  # padded by 2 each side
    squares = whole.parts["test"].images.unfold(1, 2, 2).unfold(2, 2, 2)
    assert torch.equal(half.parts["test"].images, squares.float().mean((-1, -2)).round().byte())
    with pytest.raises(ValueError, match=r"task\.image_size=20: .* only to 16 or 8"):
        cifar.Config(image_size=20)


def test_a_copy_is_read_where_it_is_asked_for_and_recorded(
    ten, caplog: pytest.LogCaptureFixture
) -> None:
    true = ten.task(verify="warn")
    true.setup()
    assert true.compared.published is True and not caplog.records
    copy = ten.task(archive=None, verify="warn")
    copy.setup()
    assert copy.compared.published is False and len(copy.compared.found) == 6
    assert len(caplog.records) == 1 and "data_batch_1 is not as published" in caplog.text
    assert torch.equal(copy.parts["test"].images, true.parts["test"].images)
    file = "cifar-10-batches-py/test_batch"
    md5 = ten.archive.test["test_batch"]
    assert true.inspect()[file] == f"md5 {md5}, as published"
    assert copy.inspect()[file].startswith(f"md5 {md5}; md5 ") and copy.inspect()["test"]


def test_another_archive_put_there_by_hand_is_a_copy_too(ten, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(ten.root / "packed" / ten.archive.filename, tmp_path / "new")
    published = cifar.published_archive(10)
    with pytest.raises(ValueError, match=r"sha256 .*data\.verify=warn takes it as it is"):
        ten.task(root=str(tmp_path / "new"), archive=published).setup()
    copy = ten.task(root=str(tmp_path / "new"), archive=published, verify="warn")
    copy.setup()
    assert copy.compared.published is False and copy.parts


def test_only_ten_or_a_hundred_classes() -> None:
    with pytest.raises(ValueError, match="10 or 100 classes"):
        cifar.Config(classes=20)


def test_cutout_is_on_unless_it_is_switched_off(ten, make_cifar) -> None:
    task = ten.task(config=cifar.Config(cutout=False))
    task.setup()
    plain, cut = (next(t.train_batches(0, 90)).inputs for t in (task, make_cifar(10)))
    hidden = (cut == 0).all(1, keepdim=True)
    assert not (plain == 0).all(1).any() and hidden.any()
    assert torch.equal(plain.masked_fill(hidden, 0.0), cut)  # the same crops and flips


def test_a_missing_set_is_one_line_that_says_what_to_put_where(ten, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz") as error:
        ten.task(root=str(tmp_path / "elsewhere")).setup()
    for said in ("data.root=", "elsewhere", "cifar-10-batches-py", "data.download=true"):
        assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "elsewhere").exists()


def test_download_without_a_network_is_one_line(ten, tmp_path: Path) -> None:
    archive = dataclasses.replace(ten.archive, url=(tmp_path / "absent").as_uri())
    task = ten.task(root=str(tmp_path / "new"), download=True, archive=archive)
    with pytest.raises(ValueError, match="fetch it elsewhere and put it at") as error:
        task.setup()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_downloads_verifies_and_unpacks(ten, make_cifar, tmp_path: Path) -> None:
    task = ten.task(root=str(tmp_path / "new"), download=True)
    task.setup()
    there = {path.name for path in (tmp_path / "new").iterdir()}
    assert there == {ten.archive.filename, ten.archive.folder}
    assert torch.equal(task.parts["train"].images, make_cifar(10).parts["train"].images)


def test_an_archive_put_there_by_hand_is_unpacked_without_download(ten, tmp_path: Path) -> None:
    shutil.copytree(ten.root / "packed", tmp_path / "new")
    ten.task(root=str(tmp_path / "new")).setup()


def test_many_at_once_download_once(ten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = cifar.download.download
    monkeypatch.setattr(
        cifar.download, "download", lambda url, to: (calls.append(url), real(url, to))
    )
    tasks = [ten.task(root=str(tmp_path / "new"), download=True) for _ in range(4)]
    threads = [threading.Thread(target=task.setup) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all(task.parts for task in tasks)


def test_a_wrong_archive_is_not_even_opened(
    ten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("it was opened"))
    archive = dataclasses.replace(ten.archive, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz is damaged") as error:
        ten.task(root=str(tmp_path / "new"), download=True, archive=archive).setup()
    assert "\n" not in str(error.value) and "delete it" in str(error.value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [archive.filename]


def test_a_flipped_bit_is_found(ten) -> None:
    path = ten.folder / "data_batch_3"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="data_batch_3 is not as published"):
        ten.task().setup()


def test_a_truncated_file_is_no_cifar_file(ten) -> None:
    path = ten.folder / "test_batch"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="test_batch is not as published"):
        ten.task().setup()
    ten.take_over_sums()
    with pytest.raises(ValueError, match="test_batch is no CIFAR file"):
        ten.task().setup()


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


def test_nothing_is_unpickled_before_its_sum_is_the_published_one(
    ten, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "unpickle", lambda data: pytest.fail("it was unpickled"))
    (ten.folder / "data_batch_1").write_bytes(pickle.dumps({"data": Malicious()}))
    with pytest.raises(ValueError, match="data_batch_1 is not as published"):
        ten.task().setup()


def test_the_bytes_that_were_checked_are_those_that_are_read(
    ten, make_cifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_then_swap(name: str, *args: str, path: Path, **how: str) -> None:
        real(name, *args, path=path, **how)
        path.write_bytes(b"something else")

    task = ten.task()
    real = task.compared.add
    monkeypatch.setattr(task.compared, "add", check_then_swap)
    task.setup()
    assert torch.equal(task.parts["test"].images, make_cifar(10).parts["test"].images)


def test_a_pickle_that_names_a_function_is_refused_even_if_its_sum_is_right(ten) -> None:
    (ten.folder / "data_batch_2").write_bytes(pickle.dumps({"data": Malicious()}))
    ten.take_over_sums()
    with pytest.raises(ValueError, match="data_batch_2 is no CIFAR file: refused"):
        ten.task().setup()
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": None}, "one label for each image"),
        ({"labels": [0] * 19}, "one label for each image"),
        ({"labels": [10] * 20}, "labels are not 0 to 9"),
        ({"data": torch.zeros(20, 3072).numpy()}, "rows of 3072 bytes"),
        ({"data": torch.zeros(20, 5, dtype=torch.uint8).numpy()}, "rows of 3072 bytes"),
        ({"data": "pixels"}, "rows of 3072 bytes"),
    ],
)
def test_contents_of_another_form_are_refused(ten, change: dict, said: str) -> None:
    good = {"data": torch.zeros(20, 3072, dtype=torch.uint8).numpy(), "labels": [0] * 20}
    ten.rewrite("test_batch", good | change)
    with pytest.raises(ValueError, match=said):
        ten.task().setup()


def test_a_hundred_classes_in_place_of_ten_are_refused(ten) -> None:
    ten.rewrite("test_batch", {"data": 0, "fine_labels": []})
    with pytest.raises(ValueError, match="holds no 'data' and 'labels'"):
        ten.task().setup()
