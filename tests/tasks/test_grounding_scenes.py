"""The synthetic world is a set of its own, written once, and stands in for the published ones."""

import gc
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from grounding_files import WIDTH, Network, make

from npas.config.schema import SyntheticConfig
from npas.models import bag_of_words, build
from npas.tasks import base
from npas.tasks import scenes as scene_module
from npas.tasks.grounding import task as grounding

MADE = grounding.Made(train=12, val=3, test=4)


def scenes(root: Path, **keys: Any) -> Any:
    return make(root, "scenes", **{"made": MADE, **keys})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("scenes")
    scenes(found).setup()
    return found


def test_a_set_is_written_once_and_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(scene_module, "write_flickr30k", write)
    task = scenes(root)
    task.setup()
    assert task.name == "scenes" and task.source == "real"
    counts = {split: len(part.flat.images) for split, part in task.parts.items()}
    assert counts == {"train": 12, "val": 3, "test": 4}
    assert [path.name[:7] for path in root.iterdir()] == ["scenes-"]
    assert task.inspect()["all"] == "19 images, synthetic; 95 captions"
    for changed in ({"word_width": 7}, {"made": grounding.Made(train=12, val=3, test=5)}):
        with pytest.raises(AssertionError, match="written again"):
            scenes(root, **changed).setup()
    assert [path.name[:7] for path in root.iterdir()] == ["scenes-"]


def set_up(root: Path) -> None:
    scenes(root).setup()


def test_processes_that_start_together_write_one(
    fork: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    processes = [fork(set_up, tmp_path) for _ in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_every_phrase_has_a_region_and_types_are_measured(root: Path) -> None:
    task = scenes(root, regions=20)
    task.setup()
    found = task.evaluate(Network(task), "test")
    assert found["oracle"] > 90 and 4 < found["chance"] < 20
    assert any(key.startswith("accuracy_") for key in found)
    for sample in task.examples(Network(task), "test", 6):
        assert sample.pictures[0].image.is_file()


def test_a_network_learns_what_phrases_speak_of(root: Path) -> None:
    keys = {"region_width": 32, "word_width": 16, "max_words": 14, "regions": 20, "phrases": 12}
    task = scenes(root, **keys, made=grounding.Made(train=60, val=1, test=20))
    task.setup()
    torch.manual_seed(0)
    model = build(bag_of_words.Config(width=16), task.spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for epoch in range(15):
        for batch in base.batches(task, epoch, 10):
            loss, _ = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = task.evaluate(model, "test")
    # Over ten seeds of world, network and order: 1.9 times chance and above.
    assert found["accuracy"] > 1.4 * found["chance"]


@pytest.mark.parametrize("words", ["vectors", "bert"])
@pytest.mark.parametrize("name", ["flickr30k", "referit", "scenes"])
def test_a_rehearsal_reads_made_up_files(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    synthetic = SyntheticConfig(train=5, test=2)
    keys = {"regions": 300, "phrases": 16, "words": words, "word_width": 8}

    def made() -> Any:
        task = make(tmp_path / "nowhere", name, source="synthetic", synthetic=synthetic, **keys)
        task.setup()
        return task

    def folders() -> list[Path]:
        return list(tmp_path.glob("npas-*"))  # torch may put one of its own there

    task, other = made(), made()
    assert task.source == "synthetic" and len(folders()) == 2
    counts = {split: len(part.flat.images) for split, part in task.parts.items()}
    assert counts == {"train": 5, "val": 2, "test": 2}
    shapes = {key: given.shape for key, given in task.spec.inputs.items()}
    assert shapes == {
        "words": (4, 10, 8), "lengths": (4,), "regions": (20, WIDTH), "boxes": (20, 5),
    }  # fmt: skip
    one, again = (next(base.batches(t, 0, 4)) for t in (task, other))
    for key, values in one.inputs.items():
        assert torch.equal(values, again.inputs[key])
        assert values.shape[1:] == shapes[key]
    assert task.evaluate(Network(task), "val")["oracle"] > 50
    assert "synthetic" in task.inspect()["all"]
    del task, other
    gc.collect()
    assert not folders()


def test_what_cannot_be_written_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scene_module, "write_flickr30k", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)") as error:
        scenes(root, region_width=7).setup()
    assert "\n" not in str(error.value)
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
