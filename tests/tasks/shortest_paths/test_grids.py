"""Mazes are drawn alike everywhere, and their shortest paths are those that networkx finds."""

import hashlib

import networkx as nx
import pytest
import torch

from npas.tasks.shortest_paths import mazes

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
    grids = mazes.draw(7, "test", torch.arange(60), size, density, shortest, longest)
    for obstacles, ends, paths in zip(grids.obstacles, grids.ends, grids.paths, strict=True):
        graph = graph_of(obstacles)
        start, end = cells(ends)
        every = nx.all_shortest_paths(graph, start, end)
        assert cells(paths) == {cell for path in every for cell in path}
        assert shortest <= nx.shortest_path_length(graph, start, end) <= longest


def test_lengths_come_up_evenly_and_obstacles_as_often_as_asked():
    grids = mazes.draw(0, "test", torch.arange(6000), 12, 0.3, 1, 6)
    apart = (grids.paths.flatten(1).sum(1) - 1).clamp(max=1)
    assert apart.min() == 1
    assert abs(grids.obstacles.float().mean() - 0.3) < 0.01
    free, ends = ~grids.obstacles, grids.ends
    first = torch.zeros_like(ends).flatten(1)
    first[torch.arange(6000), ends.flatten(1).int().argmax(1)] = True
    first = first.view_as(ends)
    length = (mazes.distances(free, first, 6) * ends).sum((1, 2))
    counts = length.bincount(minlength=7)
    assert counts[0] == 0 and len(counts) == 7
    assert (counts[1:] - 1000).abs().max() < 150


def test_a_grid_depends_on_its_index_alone():
    def draw(index, seed=3, purpose="test"):
        grids = mazes.draw(seed, purpose, torch.tensor(index), 8, 0.45, 1, 12)
        stacked = torch.stack([grids.obstacles, grids.ends, grids.paths], 1)
        return [one.numpy().tobytes() for one in stacked]

    whole = draw(list(range(200)))
    assert draw(list(range(150, 200))) == whole[150:]
    assert draw([7, 3, 199]) == [whole[7], whole[3], whole[199]]
    assert len(set(whole)) == 200
    assert not set(draw(list(range(200)), seed=4)) & set(whole)
    assert not set(draw(list(range(200)), purpose="other")) & set(whole)
    grids = mazes.draw(0, "test", torch.arange(50), 10, 0.3, 2, 9)
    stacked = torch.stack([grids.obstacles, grids.ends, grids.paths])
    assert hashlib.sha256(stacked.numpy().tobytes()).hexdigest() == SUM


@pytest.mark.gpu
def test_a_gpu_draws_the_same_grids():
    host, device = (
        mazes.draw(0, "test", torch.arange(500, device=where), 16, 0.35, 1, 20)
        for where in ("cpu", "cuda")
    )
    assert torch.equal(host.obstacles, device.obstacles.cpu())
    assert torch.equal(host.ends, device.ends.cpu())
    assert torch.equal(host.paths, device.paths.cpu())


def test_what_never_turns_up_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(mazes, "MOST_ATTEMPTS", 5)
    with pytest.raises(ValueError, match=r"14 to 15 moves apart .* lower task.density"):
        mazes.draw(0, "test", torch.arange(3), 4, 0.9, 14, 15)
