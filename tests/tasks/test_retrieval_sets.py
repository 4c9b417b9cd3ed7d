"""Sets of images and sentences are found or synthetic, shown, and refused where they cannot be."""

import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from retrieval_files import NAMES, REGIONS, WIDTH, captions, write
from test_retrieval import CPU, make, network

from npas.config import DataConfig
from npas.config.typed import build as build_config
from npas.tasks.retrieval import reader
from npas.tasks.retrieval import task as retrieval
from npas.tasks.scenes import dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieval")
    write(folder, "coco")
    write(folder)
    return folder


# --- synthetic


@pytest.mark.parametrize(
    ("name", "keys"),
    [("f30k", {}), ("coco", {"test": "testall", "folds": 5}), ("scenes", {"captions": 2})],
)
def test_a_rehearsal_needs_no_files_and_leaves_none(
    tmp_path: Path, name: str, keys: dict[str, Any]
) -> None:
    wide = {"region_width": 16, "word_width": 6, "regions": 36, "max_words": 32}
    task = make(tmp_path / "none", {"source": "synthetic"}, set=name, **wide, **keys)
    assert (task.name, task.source) == (name, "synthetic")
    assert {part: len(own) for part, own in task.parts.items()} == {
        **{"train": 8, "val": 4, "test": 4},
    }
    assert "published" not in " ".join(task.inspect().values())
    model = network(task, vocab_size=200)
    for batch in task.train_batches(0, 2, range(2)):
        loss, _ = task.loss(model, batch)
        assert loss.isfinite()
    assert set(task.evaluate(model, "test")) == set(task.evaluate(model, "val"))
    shown = task.examples(model, "test", 2)
    assert all(p.image is not None and p.image.is_file() for p in shown[0].pictures)
    folder = task.found.folder
    assert folder.is_dir() and not (tmp_path / "none").exists()
    del task, shown
    gc.collect()
    assert not folder.exists()


def test_scenes_are_a_set_of_their_own_that_is_made_once(tmp_path: Path) -> None:
    config = build_config(
        retrieval.Config,
        {
            "set": "scenes",
            "regions": 6,
            "region_width": 16,
            "word_width": 6,
            "scenes": {"least": 2, "most": 3},
            "made": {"train": 12, "val": 4, "test": 5, "seed": 1},
        },
        "task",
    )

    def made(config: retrieval.Config) -> retrieval.Task:
        data = DataConfig(root=str(tmp_path), download=False)
        task = retrieval.Task(config, data, seed=0, device=CPU)
        task.setup()
        return task

    task = made(config)
    assert (task.name, task.source) == ("scenes", "real")
    assert {part: len(own) for part, own in task.parts.items()} == {
        **{"train": 12, "val": 4, "test": 5},
    }
    assert "12 of" not in task.inspect()["words"]
    (folder,) = tmp_path.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = made(config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert again.parts["train"].images.captions == task.parts["train"].images.captions
    made(dataclasses.replace(config, made=dataset.Made(12, 4, 5, seed=2)))
    assert len(list(tmp_path.iterdir())) == 2


def test_all_words_of_the_scenes_have_vectors(tmp_path: Path) -> None:
    keys = {"set": "scenes", "made": dataset.Made(20, 5, 5), "regions": 2, "region_width": 4}
    line = make(tmp_path, **keys, max_words=100).inspect()["words"]
    have, _, there = line.split("; ")[2].split(" ")[:3]
    assert have == there, line


# --- shown


def test_examples_show_what_fits_best_and_where_the_right_one_is(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "test_ids.txt").write_text("".join(f"im{i}\n" for i in range(6)))
    (tmp_path / "pictures").mkdir()
    task = make(tmp_path, images="pictures")
    model = network(task)
    shown = task.examples(model, "test", 3)
    assert [own.heading.split("\n")[0] for own in shown] == [
        "a cat runs in test",
        "Image im2",
        "the horse runs. in test".replace("horse", NAMES[4]),
    ]
    similarity = task._similarity(model, "test", 0, 1)[0]
    for own, sentence in ((shown[0], 0), (shown[2], 21)):
        best = similarity[sentence].argsort(descending=True)[:5].tolist()
        assert [p.caption.split()[1] for p in own.pictures] == [f"im{i}" for i in best]
        assert [p.right for p in own.pictures] == [i == sentence // 5 for i in best]
        for p, i in zip(own.pictures, best, strict=True):
            assert p.image == tmp_path / "pictures" / f"im{i}.jpg"
        place = int((similarity[sentence] > similarity[sentence, sentence // 5]).sum()) + 1
        assert own.heading.endswith(f"its image comes as number {place} of 6")
    first, *below = shown[1].pictures
    assert first.image == tmp_path / "pictures" / "im2.jpg" and len(below) == 5
    best = similarity[:, 2].argsort(descending=True)[:5].tolist()
    assert [p.right for p in below] == [i // 5 == 2 for i in best]
    assert all(p.image is None for p in below)
    assert captions("test")[best[0]] in below[0].caption
    place = int((similarity[:, 2] > similarity[10:15, 2].max()).sum()) + 1
    assert shown[1].heading.endswith(f"its best sentence comes as number {place} of 30")
    assert len(task.examples(model, "test", 100)) == 6
    (tmp_path / "pictures").rmdir()
    with pytest.raises(ValueError, match=r"pictures is not there: set task.images"):
        task.examples(model, "test", 1)


def test_without_pictures_names_are_shown(root: Path) -> None:
    task = make(root)
    shown = task.examples(network(task), "val", 2)
    assert all(p.image is None and p.caption for own in shown for p in own.pictures)


# --- what cannot be


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"regions": 0}, "task.regions must be at least 1"),
        ({"region_width": 10**6}, "task.region_width must be at most 65536"),
        ({"captions": 6}, "task.captions must be at most 5"),
        ({"margin": 0.0}, "task.margin must be above 0"),
        ({"beta": 1.0}, "task.beta must be below 1"),
        ({"negatives": 0}, "task.negatives must be at least 1"),
        ({"sentence_factor": -1.0}, "task.sentence_factor must be at least 0"),
        ({"folds": -1}, "task.folds must be at least 0"),
        ({"folds": 5}, r"task.folds=5 is for COCO's testall: set task.folds=0$"),
        (
            {"set": "coco", "folds": 5},
            "is for COCO's testall: set task.folds=0, or task.test=testall",
        ),
        ({"test": "testall"}, "set=f30k has none; set task.test=test"),
        ({"set": "scenes", "test": "testall"}, "set=scenes has none"),
        ({"set": "scenes", "vectors": "mine.txt"}, "task.vectors=mine.txt is not read where"),
        ({"set": "scenes", "images": "mine"}, "task.images=mine is not read where"),
        ({"vectors": " "}, "task.vectors must not be empty"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        retrieval.Config(**keys)
    assert retrieval.Config(set="coco", test="testall", folds=5).test == "testall"
    assert retrieval.Config(set="scenes", folds=5).folds == 5


def test_a_set_that_is_not_there_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"coco is not under data.root=.*coco_precomp"):
        make(tmp_path, set="coco")
    write(tmp_path)
    (tmp_path / "glove.6B.300d.txt").unlink()
    with pytest.raises(ValueError, match=r"glove.6B.300d.txt is not there"):
        make(tmp_path)
    with pytest.raises(ValueError, match=r"data.val_fraction=0.1 does not apply to f30k"):
        make(tmp_path, {"val_fraction": 0.1})


def test_folds_must_be_equal(root: Path) -> None:
    with pytest.raises(ValueError, match=r"task.folds=3 does not divide the 4 images of dev"):
        make(root, set="coco", test="testall", folds=3)


def test_a_network_of_too_few_words_is_refused(root: Path) -> None:
    task = make(root)
    few = network(task, vocab_size=5)
    for use in (
        lambda: task.check_network(few),
        lambda: task.evaluate(few, "val"),
        lambda: task.loss(few, next(task.train_batches(0, 4))),
    ):
        with pytest.raises(ValueError, match=r"and the network has model.vocab_size=5: set it to"):
            use()
    task.check_network(network(task, embedding=0, vocab_size=5))  # which learns no words


def test_a_batch_is_whole_and_has_more_than_one_image(root: Path) -> None:
    task = make(root)
    task.check_parts(2, 1)
    with pytest.raises(ValueError, match=r"batch_size=1: there is nothing to compare one image"):
        task.check_parts(1, 1)
    with pytest.raises(ValueError, match=r"cannot be cut into 2 parts: set trainer.devices=1"):
        task.check_parts(2, 2)
    with pytest.raises(ValueError, match="batch_size=41 is more than the 40 training sentences"):
        task.steps_per_epoch(41)


def test_a_file_that_is_damaged_later_is_met_where_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    found = reader.read(folder, "dev", REGIONS, WIDTH)
    (folder / "dev_ims.npy").unlink()
    with pytest.raises(ValueError, match=r"dev_ims.npy cannot be read any more"):
        found.features.read(torch.arange(2))
