"""Batches and metrics of the text and scene tasks do not depend on ranks or workers."""

import gc
from functools import cache

import pytest
import torch
from simulated_ranks import by_ranks

from npas import tasks
from npas.config import DataConfig
from npas.config.schema import SyntheticConfig
from npas.models import build
from npas.models import family as model_family
from npas.tasks import base
from npas.tasks.common import measure

SQUAD = {"max_length": 48, "stride": 16, "max_query": 12}
REGIONS = {"regions": 13, "region_width": 6, "word_width": 4}
BERT = {
    "layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "vocab_size": 600, "positions": 64,
}  # fmt: skip
ADAPT = {"width": 8, "embedding": 4, "vocab_size": 200}
# Of each case the family, its keys, the network's family and keys.
CASES = {
    "squad1.1": ("squad", {"version": "1.1", **SQUAD}, "bert", BERT),
    "squad2.0": ("squad", {"version": "2.0", **SQUAD}, "bert", BERT),
    "texts": ("text_classification", {"max_length": 24}, "bert", BERT),
    "text": ("mlm", {"max_length": 24}, "bert", BERT),
    "flickr30k": ("grounding", {"phrases": 5, **REGIONS}, "bag_of_words", {"width": 8}),
    "referit": ("grounding", {"set": "referit", **REGIONS}, "bag_of_words", {"width": 8}),
    "f30k": ("retrieval", REGIONS, "adapt", ADAPT),
    "coco": (
        "retrieval",
        {"set": "coco", "test": "testall", "folds": 5, "captions": 2, **REGIONS},
        "two_branch",
        {"width": 8, "embedding": 4},
    ),
}
MORE = {"with bert": ("grounding", {"words": "bert", **REGIONS}, "bag_of_words", {"width": 8})}


@cache
def make(name, seed=0):
    """Return a task on synthetic data, ready for use."""
    family, keys, *_ = {**CASES, **MORE}[name]
    few = SyntheticConfig(train=9, test=3)
    val = 0.5 if family in ("squad", "text_classification") else None
    data = DataConfig(source="synthetic", synthetic=few, val_fraction=val, download=False)
    module = tasks.family(family)
    task = module.Task(module.Config(**keys), data, seed=seed, device=torch.device("cpu"))
    task.setup()
    return task


@pytest.fixture(scope="module", autouse=True)
def forget():
    yield
    make.cache_clear()


def network(name, **changes):
    torch.manual_seed(0)
    *_, family, keys = CASES[name]
    return build(model_family(family).Config(**{**keys, **changes}), make(name).spec)


def rows(task, size, epoch=0, **how):
    """Return what each sample of an epoch is, in order of its batches."""
    found = []
    for batch in task.train_batches(epoch, size, **how):
        targets = batch.targets if isinstance(batch.targets, dict) else {"": batch.targets}
        given = {**batch.inputs, **targets}
        given.pop("iteration", None)  # which step it is, of which the losses know
        values = [value.reshape(batch.size, -1).double() for value in given.values()]
        found += list(torch.cat(values, 1))
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_sample_is_the_same_in_any_batch_on_any_rank(name):
    task = make(name)
    whole = rows(task, 4)
    assert len(whole) >= 8
    assert all(torch.equal(a, b) for a, b in zip(whole, rows(task, 2), strict=False))
    ranks = [rows(task, 4, rank=rank, world=2) for rank in range(2)]
    for step in range(len(whole) // 4):
        again = [row for rank in ranks for row in rank[2 * step : 2 * step + 2]]
        assert torch.equal(torch.stack(again), torch.stack(whole[4 * step : 4 * step + 4]))
    assert torch.equal(rows(task, 4, steps=range(1, 2))[0], whole[4])
    other = make(name, seed=1)
    for own in (rows(task, 4, epoch=1), rows(other, 4)):
        assert not torch.equal(torch.stack(own), torch.stack(whole))
    other.seed = 0  # synthetic files are the same each time
    assert torch.equal(torch.stack(rows(other, 4)), torch.stack(whole))


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_workers_make_the_same_batches(name):
    plain, made = (list(base.batches(make(name), 1, 2, workers=n)) for n in (0, 2))
    assert len(plain) == len(made) == 4
    for one, other in zip(plain, made, strict=True):
        others = {**other.inputs, **other.targets}
        for key, value in {**one.inputs, **one.targets}.items():
            assert torch.equal(value, others[key])


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_what_a_network_reads_and_learns_from(name):
    task, model = make(name), network(name)
    batch = next(task.train_batches(0, 4))
    like = task.spec.example("cpu")
    assert {k: (v.dtype, v.shape[1:]) for k, v in batch.inputs.items()} == {
        k: (v.dtype, v.shape[1:]) for k, v in like.items()
    }
    loss, sums = task.loss(model, batch)
    loss.backward()
    assert loss.isfinite() and all(0 <= value <= 400 for value in sums.values())
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_measures_the_same_to_the_bit(name, monkeypatch):
    task, model = make(name), network(name)
    module = __import__(type(task).__module__, fromlist=["task"])
    for key in ("EVAL_BATCH", "EVAL_IMAGES", "EVAL_SENTENCES"):
        if hasattr(module, key):
            monkeypatch.setattr(module, key, 2)
    monkeypatch.setattr(type(task), "eval_batch", 2, raising=False)
    alone = task.evaluate(model, "test")
    assert model.training and alone[task.selection_metric] >= 0
    if task.has_validation:
        assert set(task.evaluate(model, "val")) & set(alone)
    for world in (2, 5):

        def patch(over_ranks):
            monkeypatch.setattr(measure, "over_ranks", over_ranks)

        found = by_ranks(task, model, "test", world, patch)
        assert found == [alone] * world


@pytest.mark.parametrize("name", ["text", "squad1.1", "with bert", "coco"])
def test_synthetic_data_are_counted_and_leave_no_files(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make.cache_clear()
    task = make(name)
    lines = task.inspect()
    assert task.source == "synthetic" and lines and "published" not in " ".join(lines.values())
    folders = list(tmp_path.glob("npas-*"))
    assert len(folders) == (0 if name in ("text", "squad1.1") else 1)
    make.cache_clear()
    del task
    gc.collect()
    assert not list(tmp_path.glob("npas-*"))


@pytest.mark.parametrize("name", ["squad2.0", "text", "texts", "f30k"])
def test_a_network_of_too_few_words_is_refused(name):
    task, model = make(name), network(name, vocab_size=9)
    with pytest.raises(ValueError, match=r"(tokens|words).* model\.vocab_size=9: set it to"):
        task.check_network(model)
    with pytest.raises(ValueError, match="batch_size=1000000 is more than the"):
        task.steps_per_epoch(10**6)


@pytest.mark.parametrize("family", ["mlm", "grounding", "retrieval"])
def test_tasks_with_a_part_of_their_own_hold_none_out(family):
    module, data = tasks.family(family), DataConfig(val_fraction=0.1)
    with pytest.raises(ValueError, match=r"data\.val_fraction does not apply to .*null"):
        module.Task(module.Config(), data, seed=0, device=torch.device("cpu"))
