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
    ("family", "keys", "count"),
    [
        ("torchvision", {"name": "resnet50"}, 25_557_032),
        ("torchvision", {"name": "wide_resnet50_2"}, 68_883_240),
        ("torchvision", {"name": "resnet50", **THREE}, 25_576_264),
        ("torchvision", {"name": "wide_resnet50_2", **THREE}, 68_902_472),
        ("torchvision", {"name": "resnet200"}, 64_673_832),
        ("torchvision", {"name": "densenet264"}, 33_337_704),
        ("torchvision", {"name": "efficientnet_b0"}, 5_288_548),
        ("torchvision", {"name": "efficientnet_b3"}, 12_233_232),
        ("torchvision", {"name": "mobilenet_v2"}, 3_504_872),
        ("timm", {"name": "mobilenetv3_small_100"}, 2_542_856),
        ("timm", {"name": "vit_small_patch16_224"}, 22_050_664),
    ],
)
def test_counts_are_the_published_ones(family, keys, count):
    with torch.device("meta"):
        model = build(family, 224, 1000, **keys)
    assert sum(p.numel() for p in model.parameters()) == count
    assert f"{count:,}" in (models.family(family).__doc__ or "")


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
