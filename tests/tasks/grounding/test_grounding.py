"""Grounding batches, losses and metrics equal a naive implementation's."""

import functools

import h5py
import numpy as np
import pytest
import torch
from grounding_files import (
    BOXED,
    IDS,
    WRITERS,
    Network,
    annotation,
    make,
    write_features,
    write_flickr,
)
from helpers import one_line

from npas.models import bag_of_words, build
from npas.tasks import base
from npas.tasks.grounding import metrics
from npas.tasks.grounding import task as grounding
from npas.utils import rng


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    found = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, root in found.items():
        WRITERS[name](root)
    return found


@pytest.fixture(scope="module")
def ready(roots):
    """Return a maker of tasks, ready for use, on true files."""

    @functools.cache
    def made(name="flickr30k", **keys):
        return make(roots[name], name, **keys)

    return made


@pytest.mark.parametrize(
    ("name", "called", "phrases"),
    [("flickr30k", "flickr30k_entities", BOXED), ("referit", "referit", 3)],
)
def test_a_set_is_read_whole_and_counted(name, called, phrases, ready, roots):
    task = ready(name)
    assert task.name == called and task.source == "real"
    counts = {split: (len(p.flat.images), len(p.flat)) for split, p in task.parts.items()}
    # Of Flickr30K a caption of image 101 is of some other image.
    train = 9 * phrases - (name == "flickr30k")
    assert counts == {"train": (9, train), "val": (3, 3 * phrases), "test": (4, 4 * phrases)}
    lines = task.inspect()
    if name == "flickr30k":
        assert lines["train"] == (
            "9 images, 0 of them as files, 62 phrases with a box, 117 regions, 12 to 14"
            " per image, of 6 numbers; 9 of 9 images read, 0 have none"
        )
        assert lines["words"].startswith("21 different phrases of up to 3 words, ")
    else:
        assert lines["all"] == "16 images; published: 19,997 images"
        assert lines["refs(berkeley).p"].startswith("sha256 ")
    assert task.compared.published is False
    with pytest.raises(ValueError, match=r"images, not .* images\): .*data\.verify=warn"):
        make(roots[name], name, verify="refuse")


# --- batches


def drawn(task, epoch=0):
    """Return which images an epoch's samples are of, and which of their phrases they show."""
    part = task.parts["train"]
    order = rng.permutation(
        rng.derive_key(task.seed, "order", epoch), 9, torch.device("cpu")
    ).tolist()
    keys = [rng.derive_key(task.seed, "phrases", epoch, i) for i in order]
    return order, [list(part.drawn(i, k).phrases) for i, k in zip(order, keys, strict=True)]


def test_what_is_shown_is_the_images_own_and_what_is_repeated_is_not_trained_on(ready):
    task = ready(phrases=10, regions=20, negatives=3)
    part = task.parts["train"]
    batch = next(task.train_batches(0, 9))
    order, shown = drawn(task)
    for row, (image, phrases) in enumerate(zip(order, shown, strict=True)):
        assert sorted(phrases) == list(part.flat.of_image(image))
        count = int(part.regions.rows_I[image])
        features, boxes = (torch.from_numpy(values) for values in part.regions.read(image, 20))
        inputs = {name: values[row] for name, values in batch.inputs.items()}
        assert torch.equal(inputs["regions"], torch.cat([features] * 2)[:20])
        assert torch.equal(inputs["boxes"][count:], inputs["boxes"][: 20 - count])
        words, lengths = part.words.take(part.text_N[phrases])
        assert torch.equal(inputs["words"], torch.cat([words] * 2)[:10])
        assert torch.equal(inputs["lengths"], torch.cat([lengths] * 2)[:10])
        labels = batch.targets["labels"][row]
        assert (labels[len(phrases) :] == 0).all() and (labels[:, count:] == 0).all()
        overlap = metrics.overlaps(torch.from_numpy(part.flat.boxes_N4[phrases]), boxes)
        own = labels[: len(phrases), :count]
        assert torch.equal(own == 1, overlap >= 0.6) and (overlap[own == -1] < 0.4).all()
        wanted = 3 * (own == 1).sum(1)
        assert torch.equal((own == -1).sum(1), wanted.minimum((overlap < 0.4).sum(1)))
    assert (batch.targets["labels"] == 1).any()


# --- loss


def test_the_loss_is_the_mean_over_labelled_pairs(ready):
    task = ready()
    model, batch = Network(task).eval(), next(task.train_batches(0, 6))
    loss, sums = task.loss(model, batch)
    scores, labels = model(**batch.inputs).double(), batch.targets["labels"]
    pairs = zip(scores.flatten().tolist(), labels.flatten().tolist(), strict=True)
    lost = [np.log1p(np.exp(-score * label)) for score, label in pairs if label]
    assert len(lost) > 20 and loss.item() == pytest.approx(np.mean(lost), rel=1e-5)
    each = zip(scores.flatten(0, 1), labels.flatten(0, 1), strict=True)
    best = [bool(y[s.argmax()] > 0) for s, y in each if (y > 0).any()]
    assert float(sums["fits_best"]) == pytest.approx(100 * np.mean(best) * 6)
    # What has no label does not count, however great.
    scores = torch.where(labels == 0, 1e30, 0.0).requires_grad_()
    loss, _ = task.loss(lambda **_: scores, batch)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2)) and not scores.grad[labels == 0].any()


# --- measuring


def naive(task, model, split, gone=""):
    """Measure phrase by phrase, in plain Python, from the files' own boxes."""
    part = task.parts[split]
    right = {}
    for i, image in enumerate(part.flat.images):
        rows = np.zeros((1, task.config.region_width + 9), np.float32)
        if image.id != gone:
            with h5py.File(part.regions.path) as file:
                rows = file[image.id][: task.regions]
        boxes = [[float(v) for v in row[-4:]] for row in rows]
        wide, high = image.width, image.height
        place = [
            [x / wide, y / high, u / wide, v / high, (u - x + 1) * (v - y + 1) / wide / high]
            for x, y, u, v in boxes
        ]
        for number in part.flat.of_image(i):
            words, length = part.words.take(part.text_N[number])
            (scores,) = model(
                words=words[None, None],
                lengths=length[None, None],
                regions=torch.from_numpy(rows[None, :, : task.config.region_width].copy()),
                boxes=torch.tensor([place]),
            )[0].tolist()
            a, fits = part.flat.boxes_N4[number].tolist(), []
            for b in boxes:
                across = min(a[2], b[2]) - max(a[0], b[0]) + 1
                down = min(a[3], b[3]) - max(a[1], b[1]) + 1
                both = max(across, 0) * max(down, 0)
                areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
                fits.append(both / (sum(areas) - both) >= 0.5 and image.id != gone)
            kinds = zip(part.flat.types, part.flat.is_type_NC[number], strict=True)
            hit = float(fits[scores.index(max(scores))])
            found = {"accuracy": hit, "oracle": any(fits), "chance": sum(fits) / len(fits)}
            found |= {f"accuracy_{k}": hit for k, own in kinds if own}
            for key, value in found.items():
                right.setdefault(key, []).append(float(value))
    return {key: 100 * sum(own) / len(own) for key, own in right.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_measures_what_a_naive_reading_does(name, ready):
    task = ready(name)
    model = Network(task)
    for split in ("val", "test"):
        found = task.evaluate(model.train(), split)
        assert model.training
        assert found == pytest.approx(naive(task, model.eval(), split))
        assert 0 < found["chance"] < found["oracle"] and found["accuracy"] <= found["oracle"]
    kinds = ["animals", "clothing", "other", "people", "vehicles"] if name == "flickr30k" else []
    assert [key for key in found if "_" in key] == [f"accuracy_{kind}" for kind in kinds]


def test_examples_show_what_is_asked_and_what_was_chosen(ready):
    task = ready(phrases=1)
    part = task.parts["test"]
    images = set()
    model = Network(task)
    assert len(task.examples(model, "test", 5)) == 5
    shown = task.examples(model, "test", 200)
    assert len(shown) == 4 * BOXED
    for number, sample in enumerate(shown):
        (picture,) = sample.pictures
        assert sample.heading == part.flat.text(number)
        assert picture.boxes["truth"] == tuple(part.flat.boxes_N4[number].tolist())
        chosen, truth = (torch.tensor([picture.boxes[key]]) for key in ("chosen", "truth"))
        overlap = metrics.overlaps(chosen, truth).item()
        assert picture.caption == f"IoU {int(100 * overlap) / 100:.2f}"
        assert picture.right == (overlap >= 0.5)
        images.add(picture.image.name)
    assert images == {f"{name}.jpg" for name in IDS["test"]}
    right = [sample.pictures[0].right for sample in shown]
    assert 100 * sum(right) / len(right) == pytest.approx(task.evaluate(model, "test")["accuracy"])


# --- images without features


def test_images_without_features_are_not_trained_on_and_their_phrases_are_wrong(tmp_path, caplog):
    folder = write_flickr(tmp_path)
    for split, names in (("train", ["102", "107"]), ("test", ["301"])):
        with h5py.File(folder / f"{split}_features.h5", "r+") as file:
            for name in names:
                del file[name]
    task = make(tmp_path)
    _, train, test = caplog.messages  # first that these are not the published images
    assert "no features of 2 of 9 images (first: 102): they are not trained on" in train
    assert "no features of 1 of 4 images (first: 301)" in test
    assert task.inspect()["train"].endswith("7 of 7 images read, 2 have none")
    shown = [task.parts["train"].flat.images[i].id for i in task.parts["train"].there]
    assert task.train_size == 7 and shown == sorted(set(IDS["train"]) - {"102", "107"})
    assert len(next(task.train_batches(0, 7)).inputs["regions"]) == 7
    model = Network(task).eval()
    assert task.evaluate(model, "test") == pytest.approx(naive(task, model, "test", gone="301"))
    shown = task.examples(model, "test", 4 * BOXED)
    without = [own.pictures[0] for own in shown if own.pictures[0].image.stem == "301"]
    assert len(shown) == 4 * BOXED and len(without) == BOXED
    for picture in without:
        assert picture.caption == "no features" and picture.right is False
        assert list(picture.boxes) == ["truth"]


# --- what cannot be


def test_images_without_a_box_are_left_out_and_a_set_without_any_refused(tmp_path):
    folder = write_flickr(tmp_path)
    (folder / "Annotations" / "100.xml").write_text(annotation({}))
    write_features(folder / "test_features.h5", IDS["test"], count=40)
    task = make(tmp_path, regions=7)
    assert len(task.parts["train"].flat.images) == 8 and "9 images" in task.inspect()["train"]
    part = task.parts["test"]  # of many regions the best are read
    assert part.read(part.lots[:1]).targets["regions"].tolist() == [7]
    task.parts["val"].regions.close()
    with h5py.File(folder / "val_features.h5", "r+") as file:
        file["202"][1, 2] = np.inf
    with pytest.raises(
        ValueError, match=r"val_features\.h5: image 202, 100x60 pixels, has numbers"
    ):
        make(tmp_path).inspect()
    for name in IDS["val"]:
        (folder / "Annotations" / f"{name}.xml").write_text(annotation({}))
    with pytest.raises(ValueError, match="no phrase of val has a box"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"region_width": 5}, r"not rows of task\.region_width=5 features"),
        ({"word_width": 4}, r"line 1 has 3 numbers: set task\.word_width"),
        ({"vectors": "other.txt"}, r"other\.txt cannot be read \(No such file"),
        ({"words": "bert", "bert": "nowhere"}, r"task\.bert=nowhere"),
    ],
)
def test_keys_that_do_not_fit_the_files_are_refused(keys, message, roots):
    with one_line(message):
        make(roots["flickr30k"], **keys)


# --- the rendered world as a set of its own


@pytest.mark.slow
def test_scenes_are_a_set_of_their_own_and_a_network_learns_what_phrases_speak_of(tmp_path):
    keys = {"region_width": 32, "word_width": 16, "max_words": 14, "regions": 20, "phrases": 12}
    made = grounding.Made(train=40, val=1, test=14)
    task = make(tmp_path, name="scenes", made=made, **keys)
    assert task.name == "scenes" and task.source == "real"
    assert task.inspect()["train"].startswith("40 images, 40 of them as files")
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
    assert found["oracle"] > 90 and 4 < found["chance"] < 20
    # Over ten seeds of world, network and order: 1.9 times chance and above.
    assert found["accuracy"] > 1.4 * found["chance"]
    assert task.examples(model, "test", 1)[0].pictures[0].image.is_file()
