"""What all tasks promise: batches, metrics and examples do not depend on ranks and workers."""

import gc
import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers import by_ranks
from helpers import make as new
from PIL import Image
from torch import nn

from npas.config.schema import SyntheticConfig
from npas.models import build
from npas.models import family as model_family
from npas.tasks import base, shortest_paths
from npas.tasks.common import measure

SQUAD = {"max_length": 48, "stride": 16, "max_query": 12}
REGIONS = {"regions": 13, "region_width": 6, "word_width": 4}
WRN = ("wrn", {"depth": 10, "width": 1})
TINY = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "vocab_size": 600}
BERT, BAG = ("bert", {**TINY, "positions": 64}), ("bag_of_words", {"width": 8})
COCO = {"set": "coco", "test": "testall", "folds": 5, "captions": 2}
# Of each case the family, its keys, the network's family and keys.
CASES = {
    "digits": ("digits", {}, *WRN),
    "cifar": ("cifar", {"classes": 100}, *WRN),
    "imagenet": ("imagenet", {"size": 16, "resize": 20, "held_out": 1, "pca_noise": 0.1}, *WRN),
    "shards": ("imagenet", {"classes": 3, "size": 16, "resize": 20, "form": "shards"}, *WRN),
    "images": ("images", {"size": 16, "resize": 20}, *WRN),
    "mazes": ("shortest_paths", {"size": 7, "phases": [2, 4, 6]}, "grid_cnn", {"depth": 2}),
    "lm": ("lm", {"length": 8}, "gpt", {"layers": 1, "width": 8}),
    "squad1.1": ("squad", {"version": "1.1", **SQUAD}, *BERT),
    "squad2.0": ("squad", {"version": "2.0", **SQUAD}, *BERT),
    "texts": ("text_classification", {"max_length": 24}, *BERT),
    "mlm": ("mlm", {"max_length": 24}, *BERT),
    "flickr30k": ("grounding", {"phrases": 5, **REGIONS}, *BAG),
    "referit": ("grounding", {"set": "referit", **REGIONS}, *BAG),
    "f30k": ("retrieval", REGIONS, "adapt", {"width": 8, "embedding": 4, "vocab_size": 200}),
    "coco": ("retrieval", {**COCO, **REGIONS}, "two_branch", {"width": 8, "embedding": 4}),
}
MORE = {"with bert": ("grounding", {"words": "bert", **REGIONS}, *BAG)}
OWN_PARTS = ("imagenet", "shortest_paths", "mlm", "grounding", "retrieval")  # no val_fraction


@cache
def make(name, seed=0, train=9, test=5):
    """Return a task on synthetic data, ready for use."""
    family, keys, *_ = {**CASES, **MORE}[name]
    val = None if family in (*OWN_PARTS, "images") else 0.5
    few = SyntheticConfig(train=train, test=test)
    data = {"source": "synthetic", "synthetic": few, "val_fraction": val}
    return new(family, seed=seed, data=data, **keys)


@pytest.fixture(scope="module", autouse=True)
def forget():
    yield
    make.cache_clear()


def network(name, **changes):
    torch.manual_seed(0)
    *_, family, keys = CASES[name]
    return build(model_family(family).Config(**{**keys, **changes}), make(name).spec)


def tensors(batch):
    """Return a batch's tensors by name, without the step, of which the losses know."""
    parts = {"inputs": batch.inputs, "targets": batch.targets}
    found = {}
    for part, own in parts.items():
        found |= own if isinstance(own, dict) else {part: own}
    return {name: value for name, value in found.items() if name != "iteration"}


def rows(task, size, epoch=0, **how):
    """Return what each sample of an epoch is, in order of its batches."""
    found = []
    for batch in task.train_batches(epoch, size, **how):
        values = [value.reshape(batch.size, -1).double() for value in tensors(batch).values()]
        found += list(torch.cat(values, 1))
    return torch.stack(found)


@pytest.mark.parametrize(("name", "at_once"), [*((n, 4096) for n in CASES), ("mazes", 2)])
def test_a_sample_is_the_same_in_any_batch_on_any_rank_of_any_worker(name, at_once, monkeypatch):
    monkeypatch.setattr(shortest_paths, "DRAWN_AT_ONCE", at_once)
    task = make(name)
    whole = rows(task, 4)
    assert len(whole) >= 8 and torch.equal(whole[:8], rows(task, 2)[:8])
    ranks = [rows(task, 4, rank=rank, world=2) for rank in range(2)]
    for step in range(len(whole) // 4):
        again = torch.cat([rank[2 * step : 2 * step + 2] for rank in ranks])
        assert torch.equal(again, whole[4 * step : 4 * step + 4])
    assert torch.equal(rows(task, 4, steps=range(1, -1, -1)), whole[[4, 5, 6, 7, 0, 1, 2, 3]])
    other = make(name, seed=1)
    for own in (rows(task, 4, epoch=1), rows(other, 4)):
        assert not torch.equal(own, whole)
    monkeypatch.setattr(other, "seed", 0)  # synthetic files are the same each time
    assert torch.equal(rows(other, 4), whole)
    before = torch.get_rng_state()
    plain, made = (list(base.batches(task, 1, 2, first_step=1, workers=n)) for n in (0, 2))
    assert len(plain) == len(made) >= 3 and torch.equal(torch.get_rng_state(), before)
    for one, two in zip(plain, made, strict=True):
        others = tensors(two)
        for key, value in tensors(one).items():
            assert torch.equal(value, others[key]) and value.stride() == others[key].stride()


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_what_a_network_reads_and_learns_from(name):
    task, model = make(name), network(name)
    batch = next(task.train_batches(0, 4))
    given, like = (
        own if isinstance(own, dict) else {"": own}
        for own in (task.preprocess(batch.inputs), task.spec.example("cpu"))
    )
    assert {k: (v.dtype, v.shape[1:]) for k, v in given.items()} == {
        k: (v.dtype, v.shape[1:]) for k, v in like.items()
    }
    loss, sums = task.loss(model, batch)
    loss.backward()
    assert loss.isfinite() and all(0 <= value <= 400 for value in sums.values())
    assert any(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="batch_size=1000000 is more than the"):
        base.Task.steps_per_epoch(task, 10**6)


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_and_workers_measures_the_same_to_the_bit(name, monkeypatch):
    task, model = make(name), network(name)
    module = __import__(type(task).__module__, fromlist=["task"])
    for key in ("EVAL_BATCH", "EVAL_IMAGES", "EVAL_SENTENCES", "EVAL_TOKENS"):
        if hasattr(module, key):
            monkeypatch.setattr(module, key, 16 if key == "EVAL_TOKENS" else 2)
    monkeypatch.setattr(type(task), "eval_batch", 2, raising=False)
    alone = task.evaluate(model, "test")
    assert model.training and alone[task.selection_metric] >= 0
    if task.has_validation:
        assert set(task.evaluate(model, "val")) & set(alone)
    for world in (2, 5):

        def patch(over_ranks):
            monkeypatch.setattr(measure, "over_ranks", over_ranks)

        assert by_ranks(task, model, "test", world, patch) == [alone] * world
    monkeypatch.setattr(measure, "over_ranks", lambda tensor, world: tensor)
    monkeypatch.setattr(task, "data", replace(task.data, workers=2))
    assert task.evaluate(model, "test") == alone


def measured(rank, world, folder):
    store = torch.distributed.FileStore(str(folder / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = [make(name).evaluate(network(name), "test", rank, world) for name in ("cifar", "mazes")]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_three_processes_measure_what_one_does(fork, tmp_path, monkeypatch):
    monkeypatch.setattr(base.Task, "eval_batch", 2, raising=False)
    expected = [make(name).evaluate(network(name), "test") for name in ("cifar", "mazes")]
    for rank, process in enumerate([fork(measured, rank, 3, tmp_path) for rank in range(3)]):
        process.join(60)
        assert process.exitcode == 0
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


@pytest.mark.parametrize("name", ["mlm", "squad1.1", "with bert", "coco", "imagenet", "shards"])
def test_synthetic_data_are_counted_and_leave_no_files(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make.cache_clear()
    task = make(name)
    lines = task.inspect()
    assert task.source == "synthetic" and lines and "published" not in " ".join(lines.values())
    folders = list(tmp_path.glob("npas-*"))
    assert len(folders) == (0 if name in ("mlm", "squad1.1") else 1)
    make.cache_clear()
    del task
    gc.collect()
    assert not list(tmp_path.glob("npas-*"))


@pytest.mark.parametrize("name", ["cifar", "digits"])
def test_synthetic_classes_can_be_told_apart(name):
    task = make(name, train=200, test=100)
    torch.manual_seed(0)
    linear = nn.Linear(16 * task.spec.input_shape[0], task.spec.num_classes)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), linear)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for epoch in range(20):
        for batch in task.train_batches(epoch, 50):
            optimizer.zero_grad()
            task.loss(model, batch)[0].backward()
            optimizer.step()
    assert task.evaluate(model, "test")["accuracy"] > (60 if name == "digits" else 20)


class Guess(nn.Module):
    """Choose one of the first three classes by the sum of an image or of a text's tokens."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images=None, input_ids=None, attention_mask=None):
        sum_B = (input_ids if images is None else images).float().flatten(1).sum(1)
        scores = [torch.sin(sum_B * n) for n in range(1, min(self.classes, 3) + 1)]
        return torch.stack(scores + [-torch.ones_like(sum_B)] * (self.classes - 3), 1)


@pytest.mark.parametrize("name", ["digits", "cifar", "shards", "images", "texts"])
def test_shown_samples_are_those_measured_with_the_names_of_their_classes(name):
    task = make(name, train=4, test=20)
    model = Guess(task.spec.num_classes)
    shown = task.examples(model, "test", 50)
    right = [picture.right for sample in shown for picture in sample.pictures]
    assert len(right) == 20 and len(task.examples(model, "test", 3)) == 3
    assert 100 * sum(right) / 20 == task.evaluate(model, "test")["accuracy"]
    names = task.class_names
    assert len(set(names)) == task.spec.num_classes
    assert name != "cifar" or names == sorted(names)
    for heading, (picture,) in shown:
        answer = re.fullmatch(r"(.+) \(\d+%\)(, not (.+))?", picture.caption)
        assert heading and answer and answer[1] in names[:3] and bool(answer[2]) != picture.right
        assert (picture.image is None) == (name == "texts")
        if picture.image is not None:
            with Image.open(picture.image) as image:
                assert min(image.size) >= 8


@pytest.mark.parametrize("name", ["squad2.0", "mlm", "texts", "f30k"])
def test_a_network_of_too_few_words_is_refused(name):
    with pytest.raises(ValueError, match=r"(tokens|words).* model\.vocab_size=9: set it to"):
        make(name).check_network(network(name, vocab_size=9))


@pytest.mark.parametrize("family", OWN_PARTS)
def test_tasks_with_a_part_of_their_own_hold_none_out(family):
    with pytest.raises(ValueError, match=r"data\.val_fraction does not apply to .*null"):
        new(family, data={"val_fraction": 0.1})
