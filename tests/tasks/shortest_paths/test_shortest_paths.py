"""The curriculum, the distance bands and F1."""

import pytest
import torch
from torch import nn

from npas.config import DataConfig
from npas.tasks.shortest_paths import mazes
from npas.tasks.shortest_paths import task as shortest_paths

DATA = DataConfig(root="nowhere", val_fraction=None, download=False)
TINY = {
    "size": 7,
    "phases": [2, 4, 6],
    "phase_epochs": 2,
    "epoch_samples": 50,
    "val_samples": 20,
    "test_samples": 30,
}


def make(seed=0, **changes):
    config = shortest_paths.Config(**TINY | changes)
    task = shortest_paths.Task(config, DATA, seed=seed, device=torch.device("cpu"))
    task.setup()
    return task


def lengths(inputs):
    """Measure how far apart the two points of each input are."""
    free, ends = inputs[:, 0] == 0, inputs[:, 1] == 1
    first = torch.zeros_like(ends).flatten(1)
    first[torch.arange(len(ends)), ends.flatten(1).int().argmax(1)] = True
    return (mazes.distances(free, first.view_as(ends), 30) * ends).sum((1, 2))


class Says(nn.Module):
    """Answer with a function of the inputs, Bx2xHxW -> BxHxW."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        return self.answer(x).unsqueeze(1)


@pytest.mark.parametrize(("epoch", "longest"), [(0, 2), (1, 2), (2, 4), (4, 6), (5, 6), (99, 6)])
def test_distances_grow_phase_by_phase_and_short_ones_stay(epoch, longest):
    task = make(epoch_samples=400)
    seen = torch.cat([lengths(batch.inputs) for batch in task.train_batches(epoch, 100)])
    assert seen.unique().tolist() == list(range(1, longest + 1))
    assert task.longest(epoch) == longest


def test_each_band_of_held_out_grids_begins_where_the_one_before_ends():
    parts = make(val_samples=100).parts
    assert {name: list(part) for name, part in parts.items()} == {
        "val": [2, 4, 6],
        "test": [2, 4, 6],
    }
    for longest, grids in parts["val"].items():
        inputs = torch.stack([grids.obstacles, grids.ends], 1).float()
        assert lengths(inputs).unique().tolist() == [longest - 1, longest]
        assert len(grids.paths) == 100


def test_held_out_grids_are_the_same_for_every_seed_and_never_trained_on():
    def keys(inputs):
        return {one.numpy().tobytes() for one in inputs.bool()}

    one, other = make(seed=0, size=12), make(seed=1, size=12)
    held = [
        torch.stack([grids.obstacles, grids.ends], 1)
        for part in one.parts.values()
        for grids in part.values()
    ]
    for mine, theirs in zip(one.parts.values(), other.parts.values(), strict=True):
        assert all(torch.equal(mine[d].obstacles, theirs[d].obstacles) for d in mine)
    known = keys(torch.cat(held))
    assert len(known) == 150
    for task in (one, other):
        for epoch in range(6):
            for batch in task.train_batches(epoch, 25):
                assert not keys(batch.inputs) & known


def test_f1_is_counted_over_all_cells_of_a_band():
    task = make()
    grids = task.parts["test"]
    ends_only = task.evaluate(Says(lambda x: x[:, 1] - 0.5), "test")
    for longest, band in grids.items():
        asked = band.paths.sum().item()
        right = 2 * len(band.paths)
        assert ends_only[f"f1_{longest}"] == pytest.approx(200 * right / (right + asked))
    asked = sum(band.paths.sum().item() for band in grids.values())
    assert ends_only["f1"] == pytest.approx(200 * 180 / (180 + asked))
    assert list(ends_only) == ["f1", "f1_2", "f1_4", "f1_6", "loss"]
    losses = [
        nn.functional.binary_cross_entropy_with_logits(band.ends.float() - 0.5, band.paths.float())
        for band in grids.values()
    ]
    assert ends_only["loss"] == pytest.approx(float(sum(losses)) / 3)
    assert task.evaluate(Says(lambda x: -torch.ones_like(x[:, 0])), "val")["f1"] == 0


def test_the_loss_is_the_mean_cross_entropy_of_the_cells():
    task = make()
    batch = next(task.train_batches(0, 10))
    model = nn.Conv2d(2, 1, 3, padding=1)
    loss, sums = task.loss(model, batch)
    chance = torch.sigmoid(model(batch.inputs)[:, 0])
    right = torch.where(batch.targets == 1, chance, 1 - chance)
    torch.testing.assert_close(loss, -right.log().mean())
    assert loss.requires_grad and not sums["f1"].requires_grad
    _, sums = task.loss(lambda _: batch.targets.unsqueeze(1) - 0.5, batch)
    assert sums["f1"] == 100 * batch.size
