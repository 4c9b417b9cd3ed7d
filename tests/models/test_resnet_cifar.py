"""ResNets for small images are the published ones: counts, layers, shortcuts without parameters."""

import pytest
import torch
from torch import nn

from npas.models import InputSpec, resnet_cifar


def build(depth: int = 8, classes: int = 10, size: int = 32, channels: int = 3) -> nn.Module:
    spec = InputSpec((channels, size, size), classes)
    return resnet_cifar.build(resnet_cifar.Config(depth=depth), spec)


# 0.27M to 1.7M in table 6 of He et al. (2016)
@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)]
)
def test_counts_are_the_published_ones(depth: int, count: int) -> None:
    model = build(depth)
    assert sum(p.numel() for p in model.parameters()) == count
    weights = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weights) == depth


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1), (7, 3)])
def test_takes_cifar_and_digits(size: int, channels: int) -> None:
    assert build(size=size, channels=channels)(torch.randn(2, channels, size, size)).shape == (
        2,
        10,
    )


def test_a_shortcut_into_a_new_stage_takes_every_second_pixel_and_fills_up_with_zeros() -> None:
    block = resnet_cifar.Block(4, 8, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert out.shape == (2, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_other_shortcuts_are_the_identity() -> None:
    block = resnet_cifar.Block(4, 4, stride=1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("depth", "said"),
    [(57, "nearest is 56 or 62"), (5, "nearest is 8"), (10**6, "must be at most")],
)
def test_an_impossible_depth_is_refused_with_the_nearest(depth: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resnet_cifar.Config(depth=depth)
