"""Images that the extraction had to leave out are not trained on, and measured as wrong."""

import logging
from pathlib import Path
from typing import Any

import h5py
import pytest
from grounding_files import BOXED, IDS, Network, make, write_flickr
from simulated_ranks import by_ranks

from npas.tasks.grounding import task as grounding

GONE = {"train": ["102", "107"], "val": [], "test": ["301"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = write_flickr(tmp_path)
    for split, names in GONE.items():
        with h5py.File(folder / f"{split}_features.h5", "r+") as file:
            for name in names:
                del file[name]
    return tmp_path


@pytest.fixture
def task(root: Path) -> Any:
    found = make(root)
    found.setup()
    return found


def test_it_is_warned_of_once_a_split(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make(root).setup()
    _, train, test = caplog.messages  # first that these are not the published images
    assert train.endswith("no features of 2 of 9 images (first: 102): they are left out")
    assert "train_features.h5" in train
    assert test.endswith("no features of 1 of 4 images (first: 301): their phrases count as wrong")


def test_inspect_says_how_many(task: Any) -> None:
    found = task.inspect()
    assert found["train features"].endswith("7 of 7 images read; 2 more have none (first: 102)")
    assert found["train features"].startswith("90 regions, 12 to 14 an image, ")
    assert found["val features"].endswith("3 of 3 images read")


def test_training_goes_over_the_others(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    part = task.parts["train"]
    training = part.training

    def note(lots: Any, *rest: Any) -> Any:
        shown.extend(part.flat.images[lot.image].id for lot in lots)
        return training(lots, *rest)

    monkeypatch.setattr(part, "training", note)
    assert task.steps_per_epoch(7) == 1
    for epoch in range(3):
        shown.clear()
        list(task.train_batches(epoch, 7))
        assert sorted(shown) == sorted(set(IDS["train"]) - set(GONE["train"]))
    with pytest.raises(ValueError, match="batch_size=8 is more than the 7 training images"):
        task.steps_per_epoch(8)


def test_its_phrases_are_wrong_whatever_a_network_says(
    task: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_root = tmp_path_factory.mktemp("whole")
    write_flickr(whole_root)
    whole = make(whole_root)
    whole.setup()
    gone = IDS["test"].index(GONE["test"][0])
    model = Network(task)
    expected = {}
    for key in ("accuracy", "oracle", "chance", "accuracy_people"):
        of_each = []
        for index in range(4):  # each image alone
            lots = [lot for lot in whole.parts["test"].lots if lot.image == index]
            part = whole.parts["test"]
            with monkeypatch.context() as patch:
                patch.setitem(part.__dict__, "lots", lots)
                of_each.append(whole.evaluate(model, "test")[key])
        expected[key] = sum(of_each) - of_each[gone]
    found = task.evaluate(model, "test")
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert 0 < found["oracle"] <= 75 and len(task.parts["test"].flat) == 4 * BOXED

    def patched(over_ranks: Any) -> None:
        monkeypatch.setattr(grounding, "over_ranks", over_ranks)

    assert by_ranks(task, model, "test", 2, patched) == [found] * 2


def test_its_examples_say_so(task: Any) -> None:
    shown = task.examples(Network(task), "test", 4 * BOXED)
    without = [own.pictures[0] for own in shown if own.pictures[0].image.stem == "301"]
    assert len(shown) == 4 * BOXED and len(without) == BOXED
    for picture in without:
        assert picture.caption == "no features" and picture.right is False
        assert list(picture.boxes) == ["truth"]


def test_a_set_that_lacks_many_is_refused(root: Path) -> None:
    with h5py.File(root / "flickr30k_entities" / "train_features.h5", "r+") as file:
        del file["100"], file["101"]
    with pytest.raises(ValueError, match=r"no features of 4 of 9 images \(first: 100\)") as error:
        make(root).setup()
    assert "\n" not in str(error.value)
