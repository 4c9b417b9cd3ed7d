"""Mazes are those that networkx solves; the curriculum, the distance bands and F1."""

import hashlib

import helpers
import networkx as nx
import pytest
import torch
from torch import nn

from npas.tasks import shortest_paths

# --- mazes


# Of the 50 grids below. Committed results are of grids drawn so: another sum is another data set.
SUM = "a6b34c5c36642b58211bc9ae8911bf0897265af82ae40de4d80ccb964a8f6cce"


def graph_of(obstacles):
    graph = nx.grid_2d_graph(*obstacles.shape)
    graph.remove_nodes_from([tuple(cell) for cell in obstacles.nonzero().tolist()])
    return graph


def cells(mask):
    return {(row, column) for row, column in mask.nonzero().tolist()}


@pytest.mark.parametrize(
    ("size", "density", "shortest", "longest"),
    [(2, 0.0, 1, 2), (5, 0.5, 1, 6), (8, 0.3, 3, 9), (7, 0.0, 1, 12), (16, 0.4, 9, 24)],
)
def test_the_answer_is_every_cell_of_some_shortest_path(size, density, shortest, longest):
    grids = shortest_paths.draw(7, "test", torch.arange(60), size, density, shortest, longest)
    for obstacles, ends, paths in zip(grids.obstacles, grids.ends, grids.paths, strict=True):
        graph = graph_of(obstacles)
        start, end = cells(ends)
        every = nx.all_shortest_paths(graph, start, end)
        assert cells(paths) == {cell for path in every for cell in path}
        assert shortest <= nx.shortest_path_length(graph, start, end) <= longest


def test_lengths_come_up_evenly_and_obstacles_as_often_as_asked():
    grids = shortest_paths.draw(0, "test", torch.arange(6000), 12, 0.3, 1, 6)
    apart = (grids.paths.flatten(1).sum(1) - 1).clamp(max=1)
    assert apart.min() == 1
    assert abs(grids.obstacles.float().mean() - 0.3) < 0.01
    counts = lengths(torch.stack([grids.obstacles, grids.ends], 1)).bincount(minlength=7)
    assert counts[0] == 0 and len(counts) == 7
    assert (counts[1:] - 1000).abs().max() < 150


def test_a_grid_depends_on_its_index_alone():
    def draw(index, seed=3, purpose="test"):
        grids = shortest_paths.draw(seed, purpose, torch.tensor(index), 8, 0.45, 1, 12)
        stacked = torch.stack([grids.obstacles, grids.ends, grids.paths], 1)
        return [one.numpy().tobytes() for one in stacked]

    whole = draw(list(range(200)))
    assert draw(list(range(150, 200))) == whole[150:]
    assert draw([7, 3, 199]) == [whole[7], whole[3], whole[199]]
    assert len(set(whole)) == 200
    assert not set(draw(list(range(200)), seed=4)) & set(whole)
    assert not set(draw(list(range(200)), purpose="other")) & set(whole)
    grids = shortest_paths.draw(0, "test", torch.arange(50), 10, 0.3, 2, 9)
    stacked = torch.stack([grids.obstacles, grids.ends, grids.paths])
    assert hashlib.sha256(stacked.numpy().tobytes()).hexdigest() == SUM


@pytest.mark.gpu
def test_a_gpu_draws_the_same_grids():
    host, device = (
        shortest_paths.draw(0, "test", torch.arange(500, device=where), 16, 0.35, 1, 20)
        for where in ("cpu", "cuda")
    )
    for name, own in vars(host).items():
        assert torch.equal(own, getattr(device, name).cpu())


def test_what_never_turns_up_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(shortest_paths, "MOST_ATTEMPTS", 5)
    with pytest.raises(ValueError, match=r"14 to 15 moves apart .* lower task.density"):
        shortest_paths.draw(0, "test", torch.arange(3), 4, 0.9, 14, 15)


# --- the task


TINY = {"size": 7, "phases": [2, 4, 6], "phase_epochs": 2}
TINY |= {"epoch_samples": 50, "val_samples": 20, "test_samples": 30}


def make(seed=0, **changes):
    return helpers.make("shortest_paths", seed=seed, **TINY | changes)


def lengths(inputs):
    """Measure how far apart the two points of each input are."""
    free, ends = inputs[:, 0] == 0, inputs[:, 1] == 1
    first = torch.zeros_like(ends).flatten(1)
    first[torch.arange(len(ends)), ends.flatten(1).int().argmax(1)] = True
    return (shortest_paths.distances(free, first.view_as(ends), 30) * ends).sum((1, 2))


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
    assert list(parts["val"]) == list(parts["test"]) == [2, 4, 6]
    for longest, grids in parts["val"].items():
        inputs = torch.stack([grids.obstacles, grids.ends], 1).float()
        assert lengths(inputs).unique().tolist() == [longest - 1, longest]
        assert len(grids.paths) == 100


def test_held_out_grids_are_the_same_for_every_seed_and_never_trained_on():
    def keys(inputs):
        return {one.numpy().tobytes() for one in inputs.bool()}

    def held(task):
        bands = [band for part in task.parts.values() for band in part.values()]
        return torch.cat([torch.stack([band.obstacles, band.ends], 1) for band in bands])

    one, other = make(seed=0, size=12), make(seed=1, size=12)
    known = keys(held(one))
    assert torch.equal(held(one), held(other)) and len(known) == 150
    for task in (one, other):
        for epoch in range(6):
            assert not any(keys(b.inputs) & known for b in task.train_batches(epoch, 25))


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
