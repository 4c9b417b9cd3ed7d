"""Synthetic data are the same each time, and can be learned from."""

import pytest
import torch
from torch import nn

from npas import tasks
from npas.config import DataConfig
from npas.config.schema import SyntheticConfig

FEW_MAZES = {"size": 12, "phases": [4, 8], "density": 0.3}


def make(family, train=8, test=4, val_fraction=None, **keys):
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


def network(task):
    torch.manual_seed(0)
    inputs = 16 * task.spec.input_shape[0]
    linear = nn.Linear(inputs, task.spec.num_classes)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), linear)


@pytest.mark.parametrize("family", ["cifar", "digits"])
def test_as_many_images_as_were_asked_for_whose_classes_can_be_told_apart(family):
    for split in (0.1, 0.0):
        task = make(family, val_fraction=split)
        counts = {name: len(part) for name, part in task.parts.items()}
        assert counts == {"train": 8, "test": 4} | ({"val": 4} if split else {})
        assert task.source == "synthetic" and "images of 8 classes" in task.inspect()["train"]
    task = make(family, train=200, test=100)
    model = network(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for epoch in range(20):
        for batch in task.train_batches(epoch, 50):
            optimizer.zero_grad()
            task.loss(model, batch)[0].backward()
            optimizer.step()
    assert task.evaluate(model, "test")["accuracy"] > 60


def test_few_mazes_of_every_band_and_one_epoch_a_phase():
    task = make("shortest_paths", **FEW_MAZES)
    assert task.steps_per_epoch(2) == 4
    assert [len(grids.paths) for grids in task.parts["test"].values()] == [4, 4]
    assert [task.longest(epoch) for epoch in (0, 1, 2)] == [4, 8, 8]
    told = task.inspect()
    assert told["train"].startswith("8 mazes of 12x12 cells per epoch")
    assert told["val"] == "8 mazes of 12x12 cells, as many of each of 2 bands of distances"
