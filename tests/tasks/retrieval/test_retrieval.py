"""SCAN's images and sentences: batches, losses and recalls."""

import helpers
import numpy as np
import pytest
import torch
from retrieval_files import NAMES, REGIONS, WIDTH, WORD, captions, features, write, write_vocabulary
from test_retrieval_scores import sorted_recalls

from npas.models import build, family
from npas.tasks.retrieval import reader as words
from npas.tasks.retrieval import task as retrieval
from npas.tasks.scenes.dataset import Made
from npas.tasks.scenes.world import Difficulty

SIZES = {"regions": REGIONS, "region_width": WIDTH, "word_width": WORD, "max_words": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    write(folder)
    write(folder, "coco")
    return folder


def make(root, data=(), seed=0, **keys):
    data = {"verify": "warn", **dict(data)}
    return helpers.make("retrieval", root, seed, data, **{**SIZES, **keys})


def network(task, name="adapt", **keys):
    torch.manual_seed(0)
    sizes = {"width": 16, "embedding": 8}
    sizes |= {"vocab_size": 40} if name == "adapt" else {"dropout": 0.0}
    return build(family(name).Config(**{**sizes, **keys}), task.spec)


def test_a_set_is_read_whole(root):
    task = make(root)
    assert (task.name, task.source, task.has_validation) == ("f30k", "real", True)
    assert {name: len(own) for name, own in task.parts.items()} == {"train": 8, "val": 4, "test": 6}
    assert task.spec.outputs == "match"
    assert task.spec.inputs["words"].shape == (1, 8, WORD)  # six words between two marks
    for name, split in (("train", "train"), ("val", "dev"), ("test", "test")):
        assert task.parts[name].images.captions == captions(split)
    own = task.parts["test"].sentences.take(torch.tensor([6]))  # the dog runs. in test
    numbers = [task.vocabulary.get(w, 3) for w in ["the", "dog", "runs", "in", "test"]]
    assert own["ids"].tolist() == [[1, *numbers, 2, 0]] and numbers[-1] == 3
    assert own["words"][0].any(1).tolist() == [False, True, True, True, True, *[False] * 3]


def test_arguments_are_numbered_as_scan_numbered_them_if_that_is_there(tmp_path):
    folder = write(tmp_path)
    counted = make(tmp_path)
    assert {"runs", "the", "cat"} <= set(counted.vocabulary) and "test" not in counted.vocabulary
    assert "counted in training" in counted.inspect()["words"]
    beside = write_vocabulary(tmp_path / "vocab" / "f30k_precomp_vocab.json", ["pig"])
    assert make(tmp_path).vocabulary == beside
    own = write_vocabulary(folder / "f30k_precomp_vocab.json", ["cow", "pig"])
    task = make(tmp_path)
    assert task.vocabulary == own
    assert "6 are learned, as f30k_precomp_vocab.json" in task.inspect()["words"]


# --- batches


def said(task, batch):
    """Return the words of each sample's sentences that have numbers."""
    word = {number: word for word, number in task.vocabulary.items()}
    return [
        [" ".join(word[i] for i in own if i > 3) for own in sample]
        for sample in batch.inputs["ids"].tolist()
    ]


def test_an_epoch_has_every_sentence_beside_its_image(root):
    task = make(root)
    found = []
    for batch in task.train_batches(0, 8):
        expected = torch.from_numpy(features("train"))[batch.targets["image"]]
        assert torch.equal(batch.inputs["regions"], expected)
        for image, own in zip(batch.targets["image"].tolist(), said(task, batch), strict=True):
            assert NAMES[image] in own[0].split()
            found.append((image, own[0]))
    assert len(found) == 40 and len(set(found)) > 24  # three of five differ in known words
    # A batch knows which step it is, wherever a run goes on.
    later = next(task.train_batches(1, 16, range(1, 2)))
    assert task.steps_per_epoch(16) == 2 and set(later.targets["iteration"].tolist()) == {4}


# --- loss and figures


@pytest.mark.parametrize("name", ["adapt", "two_branch"])
@pytest.mark.parametrize("folds", [0, 2])
def test_figures_are_those_of_everything_compared_with_everything(root, name, folds):
    keys = {"set": "coco", "test": "testall", "folds": folds} if folds else {}
    task = make(root, **keys)
    model = network(task, name)
    part, count = task.parts["test"], 6 // (folds or 1)
    each = []
    for fold in range(folds or 1):
        images = torch.arange(count) + fold * count
        inputs = part.sentences.take(images[:, None] * 5 + torch.arange(5))
        inputs["regions"] = part.images.features.read(images)
        with torch.no_grad():
            each.append(sorted_recalls(model.eval()(**inputs).similarity.numpy()))
    model.train()
    found = task.evaluate(model, "test")
    assert model.training
    assert found == pytest.approx({k: np.mean([own[k] for own in each]) for k in each[0]})


# --- what is said


def test_counts_are_shown_beside_the_published_ones(root, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"images, not 29,000 images\): .*data\.verify=warn"):
        make(root, {"verify": "refuse"})
    assert make(root).compared.published is False
    monkeypatch.setitem(retrieval.PUBLISHED, "f30k", {"train": 8, "dev": 5, "test": 6})
    found = make(root).inspect()
    line = f"8 images of {REGIONS} regions of {WIDTH} numbers, 40 sentences, as published"
    assert found["train"] == line and found["dev"].endswith("; published: 5 images")
    assert found["words"].endswith("; 12 have vectors")
    array = features("dev")
    array[2, 0, 1] = np.inf
    np.save(write(tmp_path) / "dev_ims.npy", array)
    with pytest.raises(ValueError, match=r"dev_ims.npy has non-finite numbers"):
        make(tmp_path).inspect()


def test_examples_show_what_fits_best_and_where_the_right_one_is(tmp_path):
    folder = write(tmp_path)
    (folder / "test_ids.txt").write_text("".join(f"im{i}\n" for i in range(6)))
    (tmp_path / "pictures").mkdir()
    task = make(tmp_path, images="pictures")
    model = network(task)
    shown = task.examples(model, "test", 3)
    headings = ["a cat runs in test", "the bird runs. in test", "A sheep, running in test"]
    assert [own.heading.split("\n")[0] for own in shown] == headings
    similarity = task._similarity(model, "test", 0, 1)[0]
    for own, sentence in zip(shown, (0, 11, 22), strict=True):
        best = similarity[sentence].argsort(descending=True)[:5].tolist()
        assert [p.caption.split()[1] for p in own.pictures] == [f"im{i}" for i in best]
        assert [p.right for p in own.pictures] == [i == sentence // 5 for i in best]
        assert [p.image for p in own.pictures] == [tmp_path / f"pictures/im{i}.jpg" for i in best]
        place = int((similarity[sentence] > similarity[sentence, sentence // 5]).sum()) + 1
        assert own.heading.endswith(f"its image is number {place} of 6")
    assert len(task.examples(model, "test", 100)) == 6
    (tmp_path / "pictures").rmdir()
    with pytest.raises(ValueError, match=r"pictures is missing: set task.images"):
        task.examples(model, "test", 1)
    bare = make(tmp_path).examples(model, "val", 2)  # names alone
    assert all(p.image is None and p.caption for own in bare for p in own.pictures)


def test_scenes_are_a_set_of_their_own_whose_words_all_have_vectors(tmp_path):
    keys = {"set": "scenes", "max_words": 100, "scenes": Difficulty(least=2, most=3)}
    task = make(tmp_path, made=Made(12, 4, 5), **keys)
    assert (task.name, task.source) == ("scenes", "real")
    counts = {part: len(own) for part, own in task.parts.items()}
    assert counts == {"train": 12, "val": 4, "test": 5}
    assert set(words.count_words(task.parts["train"].images.captions)) - set(words.SPECIAL) <= (
        task.rows.keys()
    )
    shown = task.examples(network(task, vocab_size=200), "test", 1)
    assert shown[0].pictures[0].image.is_file()


# --- what cannot be


def test_what_does_not_fit_is_one_line(root, tmp_path):
    with pytest.raises(ValueError, match=r"coco is not under data.root=.*coco_precomp"):
        make(tmp_path, set="coco")
    with pytest.raises(ValueError, match=r"task.folds=3 does not divide the images of dev"):
        make(root, set="coco", test="testall", folds=3)
    task = make(root)
    task.check_network(network(task, embedding=0, vocab_size=5))  # which learns no words
    task.check_parts(2, 1)
    with pytest.raises(ValueError, match=r"batch_size=1: the loss compares images"):
        task.check_parts(1, 1)
    with pytest.raises(ValueError, match=r"cannot be split into 2 parts: set trainer.devices=1"):
        task.check_parts(2, 2)
