"""The convolutional networks for small images are the published ones: counts, shapes, blocks."""

from typing import Any

import pytest
import torch
from torch import nn

import npas
from npas import models
from npas.models import InputSpec, densenet, resnet_cifar

TINY: dict[str, dict[str, Any]] = {
    "wrn": {"depth": 10, "width": 1},
    "resnet_cifar": {"depth": 8},
    "resnext": {"depth": 11, "cardinality": 2, "width": 4},
    "densenet": {"depth": 10, "growth": 4},
}


def build(family: str, classes: int = 10, shape: tuple[int, ...] = (3, 32, 32), **keys: Any) -> Any:
    answers = "cell" if family == "grid_cnn" else "class"
    config = models.family(family).Config(**keys)
    return models.build(config, InputSpec(shape, classes, answers))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def kinds(model: nn.Module, *kinds: type) -> list[Any]:
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
def test_counts_are_the_published_ones(
    family: str, keys: dict, classes: int, expected: int
) -> None:
    with torch.device("meta"):
        assert count(build(family, classes, **keys)) == expected


@pytest.mark.parametrize("family", [*TINY, "vgg", "grid_cnn"])
def test_images_of_other_sizes_and_channels_are_taken(family: str) -> None:
    for channels, size in ((3, 32), (1, 16 if family == "vgg" else 8)):
        model = build(family, shape=(channels, size, size), **TINY.get(family, {}))
        answer = (2, 10, size, size) if family == "grid_cnn" else (2, 10)
        assert model(torch.randn(2, channels, size, size)).shape == answer


@pytest.mark.parametrize(
    ("family", "depth", "keys", "shortcuts"),
    [
        ("wrn", 28, {"width": 1}, 2),  # width 1 keeps the stem's channels in the first stage
        ("resnet_cifar", 20, {}, 0),
        ("resnext", 20, {"cardinality": 2, "width": 4}, 3),
        ("densenet", 22, {"growth": 4}, 0),
        ("densenet", 22, {"growth": 4, "bottleneck": True}, 0),
        ("vgg", 14, {"depth": None}, 0),
    ],
)
def test_depth_counts_the_convs_and_the_classifier(
    family: str, depth: int, keys: dict[str, Any], shortcuts: int
) -> None:
    keys = {key: value for key, value in ({"depth": depth} | keys).items() if value is not None}
    found = len(kinds(build(family, **keys), nn.Conv2d, nn.Linear))
    # The published depth of a WRN counts two of its shortcuts.
    assert found == depth + shortcuts - 2 * (family == "wrn")


def test_inner_widths_are_as_asked() -> None:
    grouped = [m for m in kinds(build("resnext", **TINY["resnext"]), nn.Conv2d) if m.groups == 2]
    assert [m.in_channels for m in grouped] == [8, 16, 32]
    narrow = build("wrn", depth=10, width=0.5)  # a fraction makes a narrow baseline
    assert {8, 16, 32} <= {m.out_channels for m in kinds(narrow, nn.Conv2d)}


def test_shortcuts_of_small_resnets_have_no_parameters() -> None:
    """They take every second pixel and fill up with zeros, or are the identity."""
    for out_channels, stride in ((8, 2), (4, 1)):
        block = resnet_cifar.Block(4, out_channels, stride).eval()
        nn.init.zeros_(block.conv2.weight)
        x = torch.rand(2, 4, 6, 6)
        new = (out_channels - 4) // 2
        expected = torch.zeros(2, out_channels, 6 // stride, 6 // stride)
        expected[:, new : new + 4] = x[:, :, ::stride, ::stride]
        assert torch.equal(block(x), expected)


def test_a_densenet_layer_appends_channels() -> None:
    layer = densenet.Layer(6, densenet.Config(depth=10, growth=4, bottleneck=True))
    x = torch.randn(2, 6, 5, 5)
    assert layer(x).shape == (2, 10, 5, 5) and torch.equal(layer(x)[:, :6], x)


def test_a_cell_of_a_grid_sees_as_far_as_there_are_convs() -> None:
    model = build("grid_cnn", 1, (2, 12, 12), depth=3, width=4).eval()
    x = torch.rand(1, 2, 15, 15, requires_grad=True)
    model(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert (seen.min(), seen.max()) == (7 - 4, 7 + 4)


def test_the_blocks_of_a_grid_cnn_share_one_bank() -> None:
    model = build("grid_cnn", 1, (2, 12, 12), depth=6, width=4)
    model = npas.share(model, templates=2, groups={"blocks.*.conv.weight": "blocks"})
    layers = [layer.name for layer in npas.allocation(model).layers]
    assert layers == [f"blocks.{i}.conv.weight" for i in range(6)]
    bank, coefficients, stem, norms, head = 2 * 4 * 4 * 9, 6 * 2, 2 * 4 * 9, 7 * 2 * 4, 4 + 1
    assert count(model) == bank + coefficients + stem + norms + head


@pytest.mark.parametrize("family", ["wrn", "densenet"])
def test_dropout_acts_in_training_alone(family: str) -> None:
    model, x = build(family, dropout=0.5, **TINY[family]), torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("family", TINY)
def test_the_seed_fixes_the_initial_weights(family: str) -> None:
    def weights() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return build(family, **TINY[family]).state_dict()

    first, again = weights(), weights()
    assert all(torch.equal(value, first[name]) for name, value in again.items())
    assert not first["classifier.bias"].any()
    stem = first["stem.weight"]  # He-normal by fan-out
    assert stem.std().item() == pytest.approx((2 / (9 * len(stem))) ** 0.5, rel=0.15)


@pytest.mark.parametrize(
    ("family", "slip", "said"),
    [
        ("wrn", {"depth": 17}, "a WRN has 6n + 4 layers; the nearest is 16 or 22"),
        ("wrn", {"depth": 9}, "nearest is 10"),
        ("wrn", {"depth": -4}, "nearest is 10"),
        ("resnet_cifar", {"depth": 57}, "nearest is 56 or 62"),
        ("resnet_cifar", {"depth": 5}, "nearest is 8"),
        ("resnet_cifar", {"depth": 10**6}, "model.depth must be at most 2000"),
        ("resnext", {"depth": 30}, "a ResNeXt has 9n + 2 layers; the nearest is 29 or 38"),
        ("resnext", {"depth": 2}, "nearest is 11"),
        ("densenet", {"depth": 99}, "a DenseNet has 3n + 4 layers; the nearest is 97 or 100"),
        ("densenet", {"depth": 189, "bottleneck": True}, "DenseNet-BC has 6n + 4 layers; the"),
        ("densenet", {"depth": 5}, "nearest is 7"),
        ("wrn", {"depth": 10**6}, "model.depth must be at most 1000"),
        ("wrn", {"width": 0.01}, "model.width must be at least"),
        ("wrn", {"width": float("nan")}, "model.width must be at least"),
        ("wrn", {"width": 1e4}, "model.width must be at most 100"),
        ("wrn", {"dropout": 1.0}, "model.dropout=1.0: give a rate"),
        ("densenet", {"dropout": -0.1}, "model.dropout=-0.1: give a rate"),
        ("densenet", {"growth": 0}, "model.growth must be at least 1"),
        ("resnext", {"cardinality": 0}, "model.cardinality must be at least 1"),
        ("resnext", {"cardinality": 1000, "width": 64}, "model.width must be at most 8"),
        ("vgg", {"hidden": -1}, "model.hidden must be at least 0"),
        ("grid_cnn", {"depth": 0}, "model.depth must be at least 1"),
        ("grid_cnn", {"width": 4097}, "model.width must be at most 4096"),
    ],
)
def test_what_cannot_be_built_is_refused(family: str, slip: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        models.family(family).Config(**slip)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_images_too_small_to_be_halved_four_times_are_refused() -> None:
    with pytest.raises(ValueError, match="halves an image four times, and the task's have 8x8"):
        build("vgg", shape=(3, 8, 8))
