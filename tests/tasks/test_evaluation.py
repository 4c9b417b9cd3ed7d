"""Metrics are the same to the bit for any number of ranks."""

import json
import math
import re

import pytest
import torch
from PIL import Image
from simulated_ranks import by_ranks
from torch import nn

from npas import tasks
from npas.config import DataConfig
from npas.config.schema import SyntheticConfig
from npas.tasks import base, classification
from npas.tasks.common import measure as measuring
from npas.tasks.shortest_paths import task as shortest_paths

FAMILIES = ("digits", "shortest_paths")


class Network(nn.Module):
    """Answer with floats of every size, and remember what was asked."""

    def __init__(self, task):
        super().__init__()
        torch.manual_seed(0)
        self.per_cell = task.spec.outputs == "cell"
        self.layers = nn.Sequential(
            nn.Conv2d(task.spec.input_shape[0], 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout()
        )
        self.answer = nn.Conv2d(8, task.spec.num_classes, 1)
        self.sizes = []

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        self.sizes.append(len(x))
        logits = self.answer(self.layers(x))
        return logits if self.per_cell else logits.mean((2, 3)) * 10


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_number_of_ranks_measures_the_same_to_the_bit(monkeypatch, family, split, tiny_task):
    monkeypatch.setattr(classification.Classification, "eval_batch", 40)
    monkeypatch.setattr(shortest_paths, "EVAL_BATCH", 40)

    def patch(over_ranks):
        monkeypatch.setattr(measuring, "over_ranks", over_ranks)

    task = tiny_task(family)
    model = Network(task)
    alone = task.evaluate(model, split)
    sizes, model.sizes = model.sizes, []
    assert len(sizes) > 3 and len(set(sizes)) > 1
    assert (
        sum(sizes)
        == {"digits": {"val": 143, "test": 359}}.get(family, {"val": 3 * 70, "test": 3 * 45})[split]
    )
    for world in (1, 2, 3, 5, 20):
        found = by_ranks(task, model, split, world, patch)
        assert found == [alone] * world
        assert sorted(model.sizes) == sorted(sizes * 2)  # each batch once in both passes
        model.sizes = []
    assert model.training
    nn.init.constant_(model.answer.weight, float("nan"))
    for metrics in by_ranks(task, model, split, 3, patch):
        assert math.isnan(metrics["loss"])


class Guess(nn.Module):
    """Choose one of the first three classes by the sum of an image or of a text's tokens."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images=None, input_ids=None, attention_mask=None):
        sum_B = (input_ids if images is None else images).float().flatten(1).sum(1)
        scores = [torch.sin(sum_B * n) for n in range(1, min(self.classes, 3) + 1)]
        return torch.stack(scores + [-torch.ones_like(sum_B)] * (self.classes - 3), 1)


SYNTHETIC = {
    "digits": {},
    "cifar": {"classes": 100},
    "imagenet": {"classes": 3, "form": "shards"},
    "images": {},
    "text_classification": {},
}


@pytest.mark.parametrize("family", SYNTHETIC)
def test_shown_samples_are_those_measured_with_the_names_of_their_classes(family):
    module = tasks.family(family)
    few = SyntheticConfig(train=4, test=20)
    data = DataConfig(source="synthetic", synthetic=few, download=False)
    config, device = module.Config(**SYNTHETIC[family]), torch.device("cpu")
    task = module.Task(config, data, seed=0, device=device)
    task.setup()
    model = Guess(task.spec.num_classes)
    shown = task.examples(model, "test", 50)
    right = [picture.right for sample in shown for picture in sample.pictures]
    assert len(right) == 20 and len(task.examples(model, "test", 3)) == 3
    assert 100 * sum(right) / 20 == task.evaluate(model, "test")["accuracy"]
    names = task.class_names
    assert len(set(names)) == task.spec.num_classes
    assert family != "cifar" or names == sorted(names)
    for heading, (picture,) in shown:
        answer = re.fullmatch(r"(.+) \(\d+%\)(, not (.+))?", picture.caption)
        assert heading and answer and answer[1] in names[:3] and bool(answer[2]) != picture.right
        assert (picture.image is None) == (family == "text_classification")
        if picture.image is not None:
            with Image.open(picture.image) as image:
                assert min(image.size) >= 8


def measure(rank, world, folder, tiny_task):
    store = torch.distributed.FileStore(str(folder / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = {}
    for family in FAMILIES:
        task = tiny_task(family)
        found[family] = [task.evaluate(Network(task), s, rank, world) for s in ("val", "test")]
        plain, made = (
            list(base.batches(task, 0, 30, rank=rank, world=world, workers=n)) for n in (0, 2)
        )
        for one, other in zip(plain, made, strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_three_processes_measure_what_one_does_and_their_workers_make_the_same_batches(
    fork, tmp_path, tiny_task
):
    ranks = [fork(measure, rank, 3, tmp_path, tiny_task) for rank in range(3)]
    expected = {}
    for family in FAMILIES:
        task = tiny_task(family)
        expected[family] = [task.evaluate(Network(task), split) for split in ("val", "test")]
    for rank, process in enumerate(ranks):
        process.join(60)
        assert process.exitcode == 0
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
