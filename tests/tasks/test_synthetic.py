"""Synthetic data have the published form, are read by the real reader, and can be learned from."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from npas import tasks
from npas.config import DataConfig
from npas.config.schema import SyntheticConfig
from npas.tasks.base import Task
from npas.tasks.cifar import synthetic
from npas.tasks.cifar import task as cifar
from npas.tasks.common.unpickle import unpickle


def make(family: str, train: int = 8, test: int = 4, val_fraction: Any = None, **keys: Any) -> Task:
    module = tasks.family(family)
    data = DataConfig(
        root="nowhere",
        source="synthetic",
        val_fraction=val_fraction,
        download=False,
        synthetic=SyntheticConfig(train=train, test=test),
    )
    task = module.Task(module.Config(**keys), data, seed=0, device=torch.device("cpu"))
    task.setup()
    return task


def network(task: Task) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.LazyLinear(task.spec.num_classes)
    )


@pytest.mark.parametrize(("family", "keys"), [("cifar", {}), ("digits", {})])
@pytest.mark.parametrize("split", [0.1, 0.0])
def test_as_many_images_as_were_asked_for(family: str, keys: dict[str, Any], split: str) -> None:
    task: Any = make(family, val_fraction=split)
    counts = {name: len(part.labels) for name, part in task.parts.items()}
    assert counts == {"train": 8, "test": 4} | ({"val": 4} if split == 0.1 else {})
    assert task.source == "synthetic"
    assert all(part.images.dtype == torch.uint8 for part in task.parts.values())


@pytest.mark.parametrize("classes", [10, 100])
def test_a_hundred_classes_and_uneven_files_and_too_few_images(classes: int) -> None:
    task: Any = make("cifar", train=1, test=1, classes=classes, val_fraction=0.1)
    assert len(task.parts["train"].labels) == (4 if classes == 10 else 1)  # five files, a val image
    task = make("cifar", train=203, test=7, classes=classes, val_fraction=0.0)
    assert task.parts["train"].labels.bincount().tolist()[0] in (3, 21)
    assert len(task.parts["train"].labels) == 203


@pytest.mark.parametrize("family", ["cifar", "digits", "shortest_paths"])
def test_the_same_bytes_each_time(family: str) -> None:
    one, other = (next(make(family).train_batches(0, 4)) for _ in range(2))
    assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    task: Any = make("cifar")
    assert not list(tmp_path.iterdir()) and not task.root.exists()


@pytest.mark.parametrize("classes", [10, 100])
def test_files_are_of_the_published_form(classes: int, tmp_path: Path) -> None:
    published = cifar.published_archive(classes)
    archive = synthetic.write(tmp_path, published, classes, 23, 7)
    assert (archive.train.keys(), archive.test.keys()) == (
        published.train.keys(),
        published.test.keys(),
    )
    count = 0
    for name, md5 in (archive.train | archive.test).items():
        data = (tmp_path / archive.folder / name).read_bytes()
        assert hashlib.md5(data).hexdigest() == md5
        assert data.startswith(b"\x80\x02}") and b"numpy.core.multiarray" in data
        batch = unpickle(data)
        labels = {10: {"labels"}, 100: {"fine_labels", "coarse_labels"}}[classes]
        assert batch.keys() == {"batch_label", "data", "filenames", *labels}
        rows, _ = cifar.parse(batch, classes)
        count += len(rows)
    assert count == 30


@pytest.mark.parametrize("family", ["cifar", "digits"])
def test_classes_can_be_told_apart(family: str) -> None:
    task = make(family, train=200, test=100)
    model = network(task)
    optimizer = None
    for epoch in range(30):
        for batch in task.train_batches(epoch, 50):
            loss, _ = task.loss(model, batch)
            if optimizer is None:
                optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert task.evaluate(model, "test")["accuracy"] > 60


def test_few_mazes_of_every_band_and_one_epoch_a_phase() -> None:
    task: Any = make("shortest_paths", size=12, phases=[4, 8], density=0.3)
    assert task.steps_per_epoch(2) == 4
    assert [len(grids.paths) for grids in task.parts["test"].values()] == [4, 4]
    assert [task.longest(epoch) for epoch in (0, 1, 2)] == [4, 8, 8]


def test_what_lies_on_disk_is_told(ten: Any) -> None:
    task = ten.task()
    task.setup()
    told = task.inspect()
    assert told["cifar-10-batches-py/test_batch"].endswith("as published")
    assert told["train"] == "90 images of 10 classes, 9 of each"
    assert "as synthetic" in make("cifar").inspect()["cifar-10-batches-py/data_batch_1"]
    assert "images of 8 classes" in make("digits").inspect()["train"]
    told = make("shortest_paths", size=12, phases=[4, 8]).inspect()
    assert told["train"].startswith("8 mazes of 12x12 cells an epoch")
    assert told["val"] == "8 mazes of 12x12 cells, as many of each of 2 bands of distances"


def test_labels_are_smoothed_in_training_alone() -> None:
    plain, smoothed = (
        make("cifar", val_fraction=0.0),
        make("cifar", val_fraction=0.0, label_smoothing=0.1),
    )
    model = network(plain)
    batch = next(plain.train_batches(0, 8))
    loss, target = smoothed.loss(model, batch)[0], batch.targets
    logs = model(batch.inputs).log_softmax(1)
    right = logs.gather(1, target[:, None]).squeeze(1)
    by_hand = -(0.9 * right + 0.1 * logs.mean(1)).mean()
    assert torch.allclose(loss, by_hand) and not torch.allclose(loss, plain.loss(model, batch)[0])
    assert smoothed.evaluate(model, "test") == plain.evaluate(model, "test")


@pytest.mark.parametrize("slip", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(slip: float) -> None:
    with pytest.raises(ValueError, match=r"task\.label_smoothing"):
        cifar.Config(label_smoothing=slip)


def test_a_class_shows_in_made_up_photographs() -> None:
    task: Any = make("imagenet")
    test = next(task._test_batches("test", range(1)))
    parts = [task._decoded("train", i) for i in range(8)]
    train = torch.stack([task.crops.test(image) for image in parts if image is not None])
    coarse = [
        torch.nn.functional.avg_pool2d(x.float(), 16).flatten(1) for x in (train, test.inputs)
    ]
    nearest = torch.cdist(coarse[1], coarse[0]).argmin(1)
    assert torch.equal(task.images["train"].labels_N[nearest], test.targets)
