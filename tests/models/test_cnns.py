"""The convolutional networks for small images are the published ones: counts, shapes, blocks."""

import pytest
import torch
from torch import nn

from npas import models
from npas.models import InputSpec, resnet_cifar

TINY = {
    "wrn": {"depth": 10, "width": 1},
    "resnet_cifar": {"depth": 8},
    "resnext": {"depth": 11, "cardinality": 2, "width": 4},
    "densenet": {"depth": 10, "growth": 4},
}


def build(family, classes=10, shape=(3, 32, 32), **keys):
    answers = "cell" if family == "grid_cnn" else "class"
    config = models.family(family).Config(**keys)
    return models.build(config, InputSpec(shape, classes, answers))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def kinds(model, *kinds):
    return [module for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize(
    ("family", "keys", "classes", "expected"),
    [
        ("wrn", {}, 10, 36_479_194),
        ("wrn", {}, 100, 36_536_884),
        ("wrn", {"depth": 16, "width": 8}, 100, 11_007_540),
        ("wrn", {"depth": 40, "width": 2}, 100, 2_255_156),
        # 0.27M to 1.7M in table 6 of He et al. (2016)
        ("resnet_cifar", {"depth": 20}, 10, 269_722),
        ("resnet_cifar", {"depth": 56}, 10, 853_018),
        ("resnet_cifar", {"depth": 110}, 10, 1_727_962),
        ("resnext", {}, 10, 68_155_210),
        ("resnext", {}, 100, 68_247_460),
        ("resnext", {"cardinality": 8}, 10, 34_426_698),
        ("densenet", {}, 10, 27_249_082),
        ("densenet", {"depth": 40, "growth": 12}, 10, 1_019_722),
        ("densenet", {"depth": 190, "growth": 40, "bottleneck": True}, 10, 25_624_430),
        ("densenet", {"depth": 100, "growth": 12, "bottleneck": True}, 10, 769_162),
        ("vgg", {}, 10, 14_728_266),
        ("vgg", {"hidden": 512}, 10, 14_991_946),
        ("grid_cnn", {"depth": 16, "width": 16, "shape": (2, 12, 12)}, 1, 37_713),
    ],
)
def test_counts_are_the_published_ones(family, keys, classes, expected):
    with torch.device("meta"):
        assert count(build(family, classes, **keys)) == expected


@pytest.mark.parametrize("family", [*TINY, "vgg", "grid_cnn"])
def test_images_of_other_sizes_and_channels_are_taken(family):
    for channels, size in ((3, 32), (1, 16 if family == "vgg" else 8)):
        model = build(family, shape=(channels, size, size), **TINY.get(family, {}))
        answer = (2, 10, size, size) if family == "grid_cnn" else (2, 10)
        x = torch.randn(2, channels, size, size)
        assert model(x).shape == answer
        if family in TINY:  # halved twice
            inner = model.blocks if family == "densenet" else model.stages
            assert inner(model.stem(x)).shape[2:] == (size // 4, size // 4)


def test_shortcuts_of_small_resnets_have_no_parameters():
    """They take every second pixel and fill up with zeros, or are the identity."""
    for out_channels, stride in ((8, 2), (4, 1)):
        block = resnet_cifar.Block(4, out_channels, stride).eval()
        nn.init.zeros_(block.conv2.weight)
        x = torch.rand(2, 4, 6, 6)
        new = (out_channels - 4) // 2
        expected = torch.zeros(2, out_channels, 6 // stride, 6 // stride)
        expected[:, new : new + 4] = x[:, :, ::stride, ::stride]
        assert torch.equal(block(x), expected)


def test_a_cell_of_a_grid_sees_as_far_as_there_are_convs():
    model = build("grid_cnn", 1, (2, 12, 12), depth=3, width=4).eval()
    x = torch.rand(1, 2, 15, 15, requires_grad=True)
    model(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert (seen.min(), seen.max()) == (7 - 4, 7 + 4)


def test_convs_start_he_normal_by_fan_out_and_the_classifiers_bias_at_zero():
    model = build("wrn", depth=10, width=4)
    assert not model.classifier.bias.any()
    for conv in kinds(model, nn.Conv2d):
        expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.15)
