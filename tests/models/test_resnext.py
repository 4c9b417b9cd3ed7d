"""ResNeXts for small images are the published ones: their counts, their shapes, their groups."""

from typing import Any

import pytest
import torch
from torch import nn

from npas.models import InputSpec, resnext


def build(classes: int = 10, size: int = 32, channels: int = 3, **keys: Any) -> nn.Module:
    return resnext.build(resnext.Config(**keys), InputSpec((channels, size, size), classes))


@pytest.mark.parametrize(
    ("cardinality", "classes", "count"),
    [(16, 10, 68_155_210), (16, 100, 68_247_460), (8, 10, 34_426_698)],
)
def test_counts_are_the_published_ones(cardinality: int, classes: int, count: int) -> None:
    with torch.device("meta"):
        model = build(classes, cardinality=cardinality)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1)])
def test_takes_cifar_and_digits(size: int, channels: int) -> None:
    model = build(size=size, channels=channels, depth=11, cardinality=2, width=4)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 10)


def test_depth_and_groups_are_as_asked() -> None:
    model = build(depth=20, cardinality=2, width=4)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len([m for m in convs if m.groups == 2]) == 6
    # Beside the convs and the classifier that count, each stage has one on a shortcut.
    assert len(convs) + 1 == 20 + 3
    assert [m.in_channels for m in convs if m.groups == 2] == [8, 8, 16, 16, 32, 32]


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ({"depth": 30}, "the nearest is 29 or 38"),
        ({"depth": 2}, "the nearest is 11"),
        ({"depth": 1_000_000}, r"model\.depth must be at most"),
        ({"cardinality": 0}, r"model\.cardinality must be at least 1"),
        ({"width": -1}, r"model\.width must be at least 1"),
        ({"cardinality": 1000, "width": 64}, "are more than 8192 channels"),
    ],
)
def test_what_cannot_be_built_is_refused(slip: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resnext.Config(**slip)
