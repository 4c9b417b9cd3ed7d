"""Classification networks of torchvision and timm are built by their names."""

import sys

import pytest
import torch

from npas import models
from npas.models import InputSpec, timm

THREE = {"stem": "three_convs"}


def build(family, size=64, classes=7, channels=3, **keys):
    spec = InputSpec((channels, size, size), classes)
    return models.build(models.family(family).Config(**keys), spec)


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [
        ("torchvision", "resnet18", 64),
        ("torchvision", "inception_v3", 96),
        ("timm", "vit_tiny_patch16_224", 64),
        ("timm", "resnet50.a1_in1k", 64),
    ],
)
def test_networks_are_made_for_the_tasks_images_and_classes(family, name, size):
    with torch.device("meta"):
        model = build(family, size, name=name)
        assert model.train()(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_a_stem_of_three_convs_halves_and_starts_as_the_other_convs_do():
    stem = build("torchvision", name="resnet18", **THREE).conv1
    convs = [m for m in stem.modules() if isinstance(m, torch.nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.stride[0]) for c in convs]
    assert shapes == [(3, 32, 2), (32, 32, 1), (32, 64, 1)]
    assert stem(torch.zeros(1, 3, 224, 224)).shape == (1, 64, 112, 112)
    assert convs[2].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_without_timm_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        timm.Config()
