"""Phrases are grounded alike in any company, and what a file holds is said."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from grounding_files import (
    BOXED,
    CPU,
    IDS,
    Network,
    annotation,
    make,
    write_features,
    write_flickr,
    write_refclef,
)
from torch import Tensor

from npas.tasks import base
from npas.tasks.grounding import metrics
from npas.tasks.grounding import task as grounding
from npas.utils import rng

WRITERS = {"flickr30k": write_flickr, "referit": write_refclef}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, root in found.items():
        WRITERS[name](root)
    return found


@pytest.fixture
def ready(roots: dict[str, Path]) -> Callable[..., Any]:
    """Return a maker of tasks, ready for use, on true files."""

    def made(name: str = "flickr30k", **keys: Any) -> Any:
        task = make(roots[name], name, **keys)
        task.setup()
        return task

    return made


def test_reads_a_set_whole(ready: Callable[..., Any]) -> None:
    for name, called, phrases in (
        ("flickr30k", "flickr30k_entities", BOXED),
        ("referit",) * 2 + (3,),
    ):
        task = ready(name)
        assert task.name == called and task.source == "real"
        assert task.has_validation and task.selection_metric == "accuracy"
        assert task.spec.outputs == "regions" and task.device == CPU
        counts = {split: (len(p.flat.images), len(p.flat)) for split, p in task.parts.items()}
        # Of Flickr30K a caption of image 101 is of some other image.
        train = 9 * phrases - (name == "flickr30k")
        assert counts == {"train": (9, train), "val": (3, 3 * phrases), "test": (4, 4 * phrases)}
        assert task.steps_per_epoch(4) == 2
    with pytest.raises(ValueError, match="batch_size=10 is more than the 9 training images of ref"):
        task.steps_per_epoch(10)


# --- batches


def rows(task: Any, **how: Any) -> list[Tensor]:
    """Return what each sample of an epoch is, in order of its batches."""
    found = []
    for batch in task.train_batches(how.pop("epoch", 0), how.pop("size", 4), **how):
        values = [*batch.inputs.values(), *batch.targets.values()]
        found += list(torch.cat([v.reshape(batch.size, -1).double() for v in values], 1))
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_a_sample_is_the_same_in_any_batch_on_any_rank(
    name: str, ready: Callable[..., Any]
) -> None:
    task = ready(name)
    whole, small = rows(task, size=4), rows(task, size=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, small, strict=False))
    ranks = [rows(task, size=4, rank=rank, world=2) for rank in range(2)]
    for step in range(2):
        again = [row for rank in ranks for row in rank[2 * step : 2 * step + 2]]
        assert torch.equal(torch.stack(again), torch.stack(whole[4 * step : 4 * step + 4]))
    assert torch.equal(rows(task, steps=range(1, 2))[0], whole[4])
    assert not torch.equal(torch.stack(rows(task, epoch=1)), torch.stack(whole))
    assert not torch.equal(torch.stack(rows(ready(name, seed=1))), torch.stack(whole))


def test_workers_make_the_same_batches(ready: Callable[..., Any]) -> None:
    task = ready()
    plain, made = (list(base.batches(task, 0, 2, workers=n)) for n in (0, 2))
    assert len(plain) == 4
    for one, other in zip(plain, made, strict=True):
        for key, value in {**one.inputs, **one.targets}.items():
            assert torch.equal(value, {**other.inputs, **other.targets}[key])


def test_a_batch_is_what_a_network_reads(ready: Callable[..., Any]) -> None:
    task = ready(phrases=10, max_words=6)
    batch = next(task.train_batches(0, 3))
    like = task.spec.example("cpu")
    assert {k: (v.dtype, v.shape[1:]) for k, v in batch.inputs.items()} == {
        k: (v.dtype, v.shape[1:]) for k, v in like.items()
    }
    assert batch.targets["labels"].shape == (3, 10, 13)
    words, lengths = batch.inputs["words"], batch.inputs["lengths"]
    place = torch.arange(6)
    assert (words[place >= lengths[..., None]] == 0).all()
    assert (words.abs().sum(3) > 0)[place < lengths[..., None]].all()


def numbers(task: Any, epoch: int = 0) -> tuple[list[int], list[list[int]]]:
    """Return which images an epoch's samples are of, and which of their phrases they show."""
    part = task.parts["train"]
    order = rng.permutation(rng.derive_key(task.seed, "order", epoch), 9, CPU).tolist()
    keys = [rng.derive_key(task.seed, "phrases", epoch, i) for i in order]
    return order, [list(part.drawn(i, k).phrases) for i, k in zip(order, keys, strict=True)]


def test_what_is_shown_is_the_images_own_and_what_is_repeated_is_not_trained_on(
    ready: Callable[..., Any],
) -> None:
    task = ready(phrases=10, regions=20, negatives=3)
    part = task.parts["train"]
    batch = next(task.train_batches(0, 9))
    order, shown = numbers(task)
    for row, (image, phrases) in enumerate(zip(order, shown, strict=True)):
        assert sorted(phrases) == list(part.flat.of_image(image))
        count = int(part.regions.rows_I[image])
        features, boxes = (torch.from_numpy(values) for values in part.regions.read(image, 20))
        inputs = {name: values[row] for name, values in batch.inputs.items()}
        assert torch.equal(inputs["regions"][:count], features)
        assert torch.equal(inputs["regions"][count:], features[: 20 - count])
        assert torch.equal(inputs["boxes"][count:], inputs["boxes"][: 20 - count])
        words, lengths = part.words.take(part.text_N[phrases])
        assert torch.equal(inputs["words"][: len(phrases)], words)
        assert torch.equal(inputs["words"][len(phrases) :], words[: 10 - len(phrases)])
        assert torch.equal(inputs["lengths"][: len(phrases)], lengths)
        labels = batch.targets["labels"][row]
        assert (labels[len(phrases) :] == 0).all() and (labels[:, count:] == 0).all()
        overlap = metrics.overlaps(torch.from_numpy(part.flat.boxes_N4[phrases]), boxes)
        own = labels[: len(phrases), :count]
        assert torch.equal(own == 1, overlap >= 0.6) and (overlap[own == -1] < 0.4).all()
        wanted = 3 * (own == 1).sum(1)
        assert torch.equal((own == -1).sum(1), wanted.minimum((overlap < 0.4).sum(1)))
    assert (batch.targets["labels"] == 1).any()


def test_phrases_are_drawn_anew_each_epoch_and_all_come_up(ready: Callable[..., Any]) -> None:
    task = ready(phrases=2)
    counts: Counter[int] = Counter()
    for epoch in range(60):
        order, shown = numbers(task, epoch)
        assert all(len(set(own)) == 2 for own in shown)
        counts.update(shown[order.index(3)])
    own = task.parts["train"].flat.of_image(3)
    assert set(counts) == set(own) and min(counts.values()) >= 5


def test_a_phrase_is_read_by_its_own_words_in_every_part(tmp_path: Path) -> None:
    folder = write_flickr(tmp_path)
    for split, text in (("val", "[/EN#1/people Woman , left]"), ("test", "[/EN#5/x the blue Dog]")):
        for name in IDS[split]:
            (folder / "Sentences" / f"{name}.txt").write_text(f"a [/EN#5/x red] {text}\n")
    task = make(tmp_path)
    task.setup()
    lines = (tmp_path / "glove.6B.300d.txt").read_text().splitlines()
    vectors = {w: list(map(float, own)) for w, *own in (line.split(" ") for line in lines)}
    for part in task.parts.values():
        for number in range(len(part.flat)):
            own = [w for w in part.flat.text(number).lower().split() if w in vectors]
            words, length = part.words.take(part.text_N[number])
            assert int(length) == len(own)
            torch.testing.assert_close(words[: len(own)], torch.tensor([vectors[w] for w in own]))


def test_every_image_draws_negatives_of_its_own_in_every_epoch(
    ready: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ready()
    drawn: list[tuple[int, int]] = []
    training = task.parts["train"].training

    def note(lots: Any, keys: Any, *rest: Any) -> Any:
        drawn.extend(zip((lot.image for lot in lots), keys, strict=True))
        return training(lots, keys, *rest)

    monkeypatch.setattr(task.parts["train"], "training", note)
    for epoch in range(3):
        list(task.train_batches(epoch, 9))
    assert len(drawn) == len({key for _, key in drawn}) == 27
    first = dict(drawn[:9])
    drawn.clear()
    list(task.train_batches(0, 3))
    assert dict(drawn) == first


def test_the_last_words_of_a_phrase_are_kept(ready: Callable[..., Any]) -> None:
    task = ready(max_words=2)
    part = task.parts["test"]
    texts = [part.flat.text(i) for i in part.flat.of_image(0)]
    one, other = (part.words.take(part.text_N[texts.index(t)]) for t in ("a red hat", "Two men"))
    assert part.words.rows_UT.shape[1] == 2 and int(one[1]) == int(other[1]) == 2
    full = ready().parts["test"]
    words, length = full.words.take(full.text_N[texts.index("a red hat")])
    assert int(length) == 3 and words.shape == (10, 3)
    assert torch.equal(one[0], words[1:3])


# --- loss


def test_the_loss_is_the_mean_over_labelled_pairs(ready: Callable[..., Any]) -> None:
    task = ready()
    model, batch = Network(task).eval(), next(task.train_batches(0, 6))
    loss, sums = task.loss(model, batch)
    scores, labels = model(**batch.inputs).double(), batch.targets["labels"]
    lost = [
        float(np.log1p(np.exp(-score * label)))
        for score, label in zip(scores.flatten().tolist(), labels.flatten().tolist(), strict=True)
        if label
    ]
    assert len(lost) > 20 and loss.item() == pytest.approx(np.mean(lost), rel=1e-5)
    asked = [
        (s, y)
        for s, y in zip(scores.flatten(0, 1), labels.flatten(0, 1), strict=True)
        if (y > 0).any()
    ]
    best = [bool(y[s.argmax()] > 0) for s, y in asked]
    assert float(sums["fits_best"]) == pytest.approx(100 * np.mean(best) * 6)


def test_scores_that_are_no_labels_do_not_count_however_great(ready: Callable[..., Any]) -> None:
    task = ready()
    batch = next(task.train_batches(0, 4))
    labels = batch.targets["labels"]
    scores = torch.where(labels == 0, 1e30, 0.0).requires_grad_()
    loss, _ = task.loss(lambda **_: scores, batch)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert (scores.grad[labels == 0] == 0).all() and scores.grad.isfinite().all()
    batch.targets["labels"].zero_()
    loss, sums = task.loss(lambda **_: scores, batch)
    assert loss.item() == 0 and float(sums["fits_best"]) == 0


# --- the files


def test_inspect_counts_the_words_that_the_file_lacks(tmp_path: Path) -> None:
    WRITERS["flickr30k"](tmp_path)
    vectors = tmp_path / "glove.6B.300d.txt"
    lines = vectors.read_text().splitlines(keepends=True)
    for left_out in (0, 2):
        vectors.write_text("".join(lines[left_out:]))
        task = make(tmp_path, "flickr30k")
        task.setup()
        assert f"none of {left_out} other words;" in task.inspect()["words"]


def test_inspect_says_what_there_is_beside_what_was_published(ready: Callable[..., Any]) -> None:
    found = ready().inspect()
    assert found["train"] == (
        "9 images (29,783 were published), 62 phrases with a box (left out: 26 phrases without a"
        " box, 1 captions of some other image), 54 boxes"
    )
    assert found["all"] == "16 images (31,783 were published), 80 captions (158,915 were published)"
    assert found["train features"].startswith("117 regions, 12 to 14 an image, of 6 numbers, in ")
    assert found["train features"].endswith(" bytes; 9 of 9 images read")
    assert found["words"].startswith("21 different phrases of up to 3 words, ")
    assert "0 of 16 image files are there (missing: " in found["images"]
    found = ready("referit").inspect()
    assert found["all"] == "16 images (19,997 were published)"
    assert found["val"] == "3 images, 9 phrases with a box, 6 boxes"


def test_inspect_finds_features_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_flickr(tmp_path)
    with h5py.File(folder / "val_features.h5", "r+") as file:
        file["202"][1, 2] = np.inf
    task = make(tmp_path)
    task.setup()
    with pytest.raises(ValueError, match=r"val_features\.h5: image 202 has numbers that are not"):
        task.inspect()


def test_an_image_without_a_box_is_not_trained_on_and_a_set_without_any_refused(
    tmp_path: Path,
) -> None:
    folder = write_flickr(tmp_path)
    (folder / "Annotations" / "100.xml").write_text(annotation("100", {}))
    task = make(tmp_path)
    task.setup()
    assert len(task.parts["train"].flat.images) == 8
    assert "9 images" in task.inspect()["train"]
    for name in IDS["val"]:
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, {}))
    with pytest.raises(ValueError, match="no phrase of val has a box"):
        make(tmp_path).setup()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"region_width": 5}, r"rows of 15 numbers, which are not task\.region_width=5 features"),
        ({"word_width": 4}, r"line 1 has 3 numbers and not 4: set task\.word_width"),
        ({"vectors": "other.txt"}, r"other\.txt is not there: put word vectors there"),
        ({"words": "bert", "bert": "nowhere"}, r"bert=nowhere|tokenizer=nowhere"),
    ],
)
def test_what_is_wrong_with_words_or_features_is_one_line(
    keys: dict[str, Any], said: str, roots: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=said) as error:
        make(roots["flickr30k"], **keys).setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"regions": 0}, r"task\.regions must be at least 1"),
        ({"phrases": 1001}, r"task\.phrases must be at most 1000"),
        ({"positive": 0.3}, r"task\.positive must be at least 0\.4"),
        ({"positive": 1.1}, r"task\.positive must be at most 1"),
        ({"negatives": 0}, r"task\.negatives must be at least 1"),
        ({"vectors": " "}, r"task\.vectors must not be empty"),
        ({"set": "scenes", "vectors": "glove.txt"}, r"task\.vectors=glove\.txt is not read"),
        ({"set": "scenes", "bert": "mine"}, r"task\.bert=mine is not read"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grounding.Config(**keys)


def test_the_sets_have_splits_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.val_fraction=0\.1 does not apply to flickr30k_entities.*null"
    ):
        make(tmp_path, val_fraction=0.1)


def test_features_of_many_boxes_are_cut_to_the_best(tmp_path: Path) -> None:
    folder = write_flickr(tmp_path)
    write_features(folder / "test_features.h5", IDS["test"], count=40)
    task = make(tmp_path, regions=7)
    task.setup()
    part = task.parts["test"]
    batch = part.measuring(part.lots[:1])
    assert batch.targets["regions"].tolist() == [7]
    features, _ = part.regions.read(0, 100)
    assert len(features) == 40
    assert torch.equal(batch.inputs["regions"][0], torch.from_numpy(features[:7]))


@pytest.mark.parametrize("name", ["flickr30k", "referit"])
def test_other_counts_than_the_published_are_refused_unless_asked_for(
    name: str, roots: dict[str, Path]
) -> None:
    root = roots[name]
    with pytest.raises(ValueError, match=r"images, not .* images\): .*data\.verify=warn"):
        make(root, name, verify="refuse").setup()
    task = make(root, name)
    task.setup()
    assert task.compared.published is False
    if name == "referit":  # which comes as a pickle
        found = hashlib.sha256((root / "refclef" / "refs(berkeley).p").read_bytes()).hexdigest()
        assert task.inspect()["refs(berkeley).p"] == f"sha256 {found}"
