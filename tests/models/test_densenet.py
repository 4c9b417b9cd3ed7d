"""DenseNets for small images are the published ones: their counts, their shapes, their layers."""

from typing import Any

import pytest
import torch
from torch import nn

from npas.models import InputSpec, densenet


def build(classes: int = 10, size: int = 32, channels: int = 3, **keys: Any) -> nn.Module:
    return densenet.build(densenet.Config(**keys), InputSpec((channels, size, size), classes))


@pytest.mark.parametrize(
    ("depth", "growth", "bottleneck", "classes", "count"),
    [
        (100, 24, False, 10, 27_249_082),
        (100, 24, False, 100, 27_457_972),
        (40, 12, False, 10, 1_019_722),
        (190, 40, True, 10, 25_624_430),
        (190, 40, True, 100, 25_821_620),
        (100, 12, True, 10, 769_162),
    ],
)
def test_counts_are_the_published_ones(
    depth: int, growth: int, bottleneck: bool, classes: int, count: int
) -> None:
    with torch.device("meta"):
        model = build(classes, depth=depth, growth=growth, bottleneck=bottleneck)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1)])
def test_takes_cifar_and_digits(size: int, channels: int, bottleneck: bool) -> None:
    model = build(size=size, channels=channels, depth=10, growth=4, bottleneck=bottleneck)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 10)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_depth_counts_the_convs_and_the_classifier(bottleneck: bool) -> None:
    model = build(depth=22, growth=4, bottleneck=bottleneck)
    weights = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weights) == 22


def test_a_layer_appends_channels_and_leaves_those_before_as_they_are() -> None:
    layer = densenet.Layer(6, densenet.Config(depth=10, growth=4, bottleneck=True))
    x = torch.randn(2, 6, 5, 5)
    out = layer(x)
    assert out.shape == (2, 10, 5, 5)
    assert torch.equal(out[:, :6], x)


@pytest.mark.parametrize(
    ("depth", "bottleneck", "said"),
    [
        (99, False, "a DenseNet has 3n + 4 layers; the nearest is 97 or 100"),
        (189, True, "a DenseNet-BC has 6n + 4 layers; the nearest is 184 or 190"),
        (5, False, "nearest is 7"),
        (-4, True, "nearest is 10"),
    ],
)
def test_an_impossible_depth_is_refused_with_the_nearest(
    depth: int, bottleneck: bool, said: str
) -> None:
    with pytest.raises(ValueError, match=said.replace("+", r"\+")):
        densenet.Config(depth=depth, bottleneck=bottleneck)


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ({"depth": 1_000_000}, r"model\.depth must be at most"),
        ({"growth": 0}, r"model\.growth must be 1 to"),
        ({"growth": 10_000}, r"model\.growth must be 1 to"),
        ({"dropout": 1.0}, r"model\.dropout"),
    ],
)
def test_what_cannot_be_built_is_refused(slip: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        densenet.Config(**slip)


def test_dropout_acts_in_training_alone() -> None:
    model, x = build(size=8, depth=10, growth=4, dropout=0.5), torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
