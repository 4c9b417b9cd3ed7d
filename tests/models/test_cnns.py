"""The convolutional networks for small images are the published ones: shapes, blocks, starts."""

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


def kinds(model, *kinds):
    return [module for module in model.modules() if isinstance(module, kinds)]


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
