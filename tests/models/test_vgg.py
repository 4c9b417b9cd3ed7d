"""VGG-16 for small images has the published counts, and its hidden layer only where asked for."""

import pytest
import torch
from torch import nn

from npas.models import InputSpec, vgg


def build(hidden: int = 0, size: int = 32, channels: int = 3) -> nn.Module:
    return vgg.build(vgg.Config(hidden=hidden), InputSpec((channels, size, size), 10))


@pytest.mark.parametrize(("hidden", "count"), [(0, 14_728_266), (512, 14_991_946)])
def test_counts_are_those_of_the_networks_that_figures_are_of(hidden: int, count: int) -> None:
    with torch.device("meta"):
        model = build(hidden)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == count
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert (len(convs), len(linear)) == (13, 2 if hidden else 1)


def test_images_of_another_size_are_taken_if_they_can_be_halved_four_times() -> None:
    with torch.device("meta"):
        assert build(size=16, channels=1)(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
        with pytest.raises(ValueError, match="halves an image four times, and the task's have 8x8"):
            build(size=8)


@pytest.mark.parametrize("hidden", [-1, 10**9])
def test_what_cannot_be_built_is_refused(hidden: int) -> None:
    with pytest.raises(ValueError, match=r"model\.hidden"):
        vgg.Config(hidden=hidden)
