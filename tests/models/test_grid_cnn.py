"""A grid CNN answers every cell, and all of its blocks have one shape."""

import pytest
import torch

import npas
from npas.models import InputSpec, grid_cnn

SPEC = InputSpec((2, 12, 12), 1)


def make(depth: int = 5, width: int = 4) -> grid_cnn.GridCNN:
    torch.manual_seed(0)
    return grid_cnn.build(grid_cnn.Config(depth=depth, width=width), SPEC)


def test_every_cell_gets_an_answer_whatever_the_grids_size() -> None:
    for size in ((12, 12), (7, 9)):
        assert make()(torch.rand(3, 2, *size)).shape == (3, 1, *size)


def test_it_is_as_large_as_it_says() -> None:
    with torch.device("meta"):
        model = grid_cnn.build(grid_cnn.Config(depth=16, width=16), SPEC)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"depth 16, width 16: {count:,} parameters" in (grid_cnn.__doc__ or "")


def test_a_cell_sees_as_far_as_there_are_convs() -> None:
    model = make(depth=3).eval()
    x = torch.rand(1, 2, 15, 15, requires_grad=True)
    model(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    assert seen.nonzero().min() == 7 - 4 and seen.nonzero().max() == 7 + 4


def test_its_blocks_share_one_bank() -> None:
    model = npas.share(make(depth=6), templates=2, groups={"blocks.*.conv.weight": "blocks"})
    shared = npas.allocation(model)
    assert [layer.name for layer in shared.layers] == [f"blocks.{i}.conv.weight" for i in range(6)]
    assert sum(p.numel() for p in model.parameters()) == (
        2 * 4 * 4 * 9 + 6 * 2 + 2 * 4 * 9 + 7 * 2 * 4 + 4 + 1
    )


@pytest.mark.parametrize("changes", [{"depth": 0}, {"width": 0}, {"depth": 1001}, {"width": 4097}])
def test_a_network_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    (key,) = changes
    with pytest.raises(ValueError, match=f"model.{key} must be from 1 to"):
        grid_cnn.Config(**changes)
