"""Networks for images and texts are the published ones: shapes, blocks, starts, causality."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import npas
from npas import models
from npas.models import InputSpec, golf, gpt, perceiver, resnet_cifar, timm
from npas.reporting.compose import compose

# --- small images


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


# --- torchvision and timm


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
        model = build(family, 7, (3, size, size), name=name)
        assert model.train()(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_a_stem_of_three_convs_halves_and_starts_as_the_other_convs_do():
    stem = build("torchvision", name="resnet18", stem="three_convs").conv1
    convs = [m for m in stem.modules() if isinstance(m, torch.nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.stride[0]) for c in convs]
    assert shapes == [(3, 32, 2), (32, 32, 1), (32, 64, 1)]
    assert stem(torch.zeros(1, 3, 224, 224)).shape == (1, 64, 112, 112)
    assert convs[2].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_without_timm_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        timm.Config()


# --- the Perceiver


SPEC = InputSpec((3, 224, 224), 1000)
SMALL = {"latents": 6, "channels": 8, "cross_attentions": 3, "blocks": 2, "heads": 2, "bands": 3}


def tiny(**keys):
    torch.manual_seed(0)
    return perceiver.build(perceiver.Config(**SMALL | keys), InputSpec((3, 9, 9), 5))


def full(share):
    with torch.device("meta"):
        return perceiver.build(perceiver.Config(share=share), SPEC)


@pytest.mark.parametrize("share", ["none", "cross_layer"])
@pytest.mark.slow
def test_flops_are_the_published_ones(share):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert full(share)(SPEC.example("meta")).shape == (1, 1000)
    # 707.2 G in print; of matrix products alone, as torch counts them, a little less.
    assert counter.get_total_flops() == 706_279_096_320


@pytest.mark.slow
def test_its_sharing_as_groups_leaves_norms_and_biases_apart():
    model = full("none")
    assert npas.plan(model, "44.9M").budget.used == 44_900_000
    sharing = compose("+exp=perceiver_groups_imagenet").sharing
    plan = npas.plan(model, None, groups=sharing.groups, templates=1, generator=sharing.generator)
    cross = (261 * 3 + 1024) + 2 * 1024 + 2 * (261 + 2 * 1024)
    block = 4 * 1024 + 2 * 1024 + 2 * 2 * 1024
    assert plan.budget.used - 44_912_254 == 6 * cross + 7 * 6 * block == 480_918
    assert len(plan.groups) == 42


def test_groups_tie_what_cross_layer_sharing_ties():
    """A network shared by groups computes what the tied one does, once biases and norms agree."""
    # So wide that no two layers' spreads differ much by chance: each would have its own scale.
    tied, apart = (tiny(share=how, blocks=6, channels=64) for how in ("cross_layer", "none"))
    groups = compose("+exp=perceiver_groups_imagenet").sharing.groups
    assert isinstance(groups, dict)
    npas.share(apart, None, groups=groups, templates=1, generator="avg")
    plain = npas.materialize(apart)
    state = plain.state_dict()
    for name in tied.state_dict():
        weight = state[name]
        if name.startswith("crosses.1.") and weight.ndim > 1:
            assert torch.equal(weight, state[name.replace("crosses.1.", "crosses.2.")])
        if name.startswith("stacks.0.") and weight.ndim > 1:
            assert torch.equal(weight, state[name.replace("stacks.0.", "stacks.2.")])
    tied.load_state_dict({name: state[name] for name in tied.state_dict()})
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(tied(x), plain(x))


def test_places_are_fourier_features_of_both_axes():
    model = tiny(bands=2, resolution=8)
    x = torch.randn(2, 3, 4, 6)
    found = model.with_places(x)
    assert found.shape == (2, 24, 3 + 2 * 5)
    row, column = 2, 5
    expected = []
    for place in (-1 + 2 * row / 3, -1 + 2 * column / 5):
        expected += [wave(math.pi * f * place) for wave in (math.sin, math.cos) for f in (1, 4)]
        expected += [place]
    torch.testing.assert_close(found[1, row * 6 + column, :3], x[1, :, row, column])
    torch.testing.assert_close(found[1, row * 6 + column, 3:], torch.tensor(expected))


# --- language models


def test_no_token_sees_what_comes_after_it():
    config = gpt.Config(layers=2, heads=2, width=8, loops=2, iteration_embeddings=True)
    model = gpt.build(config, InputSpec((6,), 5, "token"))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0]])
    other = torch.tensor([[0, 1, 2, 4, 1, 1]])
    assert torch.equal(model(tokens)[:, :3], model(other)[:, :3])
    assert not torch.allclose(model(tokens)[:, 3:], model(other)[:, 3:])


def test_loops_are_the_same_blocks_again():
    torch.manual_seed(0)
    looped = gpt.build(gpt.Config(layers=1, loops=3, heads=2, width=8), InputSpec((6,), 5, "token"))
    plain = gpt.build(gpt.Config(layers=3, heads=2, width=8), InputSpec((6,), 5, "token"))
    for name, tensor in plain.state_dict().items():
        own = name if not name.startswith("blocks.") else f"blocks.0.{name.split('.', 2)[2]}"
        tensor.copy_(looped.state_dict()[own])
    tokens = torch.tensor([[0, 1, 2, 3, 4, 0]])
    assert torch.equal(looped(tokens), plain(tokens))
    assert sum(p.numel() for p in looped.parameters()) < sum(p.numel() for p in plain.parameters())


def test_the_contests_baseline_computes_what_it_did_beside_a_plain_rewrite():
    config = golf.Config(layers=5, heads=4, kv_heads=2, width=16, zero_projections=False)
    model = golf.build(config, InputSpec((6,), 11, "token")).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.sin(torch.arange(p.numel(), dtype=p.dtype) + i).view_as(p) / 2)
        logits = model(torch.tensor([[3, 1, 4, 1, 5, 9]]))[0, -1, :6]
    expected = [0.04116, 0.40498, -0.81668, 1.159, -1.40306, 1.52836]
    torch.testing.assert_close(logits, torch.tensor(expected).double(), rtol=0, atol=1e-4)
