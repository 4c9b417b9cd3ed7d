"""Wide ResNets are the published ones: their counts, their shapes, their blocks."""

import pytest
import torch

from npas.models import InputSpec, wrn


def build(
    depth: int, width: float, classes: int = 10, size: int = 32, channels: int = 3
) -> torch.nn.Module:
    config = wrn.Config(depth=depth, width=width)
    return wrn.build(config, InputSpec((channels, size, size), classes))


@pytest.mark.parametrize(
    ("depth", "width", "classes", "count"),
    [
        (28, 10, 10, 36_479_194),
        (28, 10, 100, 36_536_884),
        (16, 8, 100, 11_007_540),
        (40, 2, 100, 2_255_156),
        (16, 2, 100, 703_284),
    ],
)
def test_counts_are_the_published_ones(depth: int, width: float, classes: int, count: int) -> None:
    assert sum(p.numel() for p in build(depth, width, classes).parameters()) == count


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1)])
def test_takes_cifar_and_digits(size: int, channels: int) -> None:
    model = build(10, 1, size=size, channels=channels)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 10)


def test_depth_counts_the_convs_and_the_classifier() -> None:
    weights = [
        m for m in build(28, 1).modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    shortcuts = [m for m in weights if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(weights) - len(shortcuts) == 28 - 2  # the published count includes two shortcuts
    assert len(shortcuts) == 2  # width 1 keeps the stem's channels in the first stage


def test_width_may_be_a_fraction_for_narrow_baselines() -> None:
    model = build(10, 0.5)
    channels = [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {8, 16, 32} <= set(channels)


@pytest.mark.parametrize(
    ("depth", "nearest"), [(17, "16 or 22"), (27, "22 or 28"), (9, "nearest is 10"), (-4, "is 10")]
)
def test_an_impossible_depth_is_refused_with_the_nearest(depth: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=nearest):
        wrn.Config(depth=depth)


@pytest.mark.parametrize("width", [0, -1, 0.01, float("nan")])
def test_a_width_without_channels_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=r"model\.width"):
        wrn.Config(width=width)


@pytest.mark.parametrize("slip", [{"depth": 1_000_000}, {"width": 1e4}])
def test_a_size_that_would_fill_the_memory_is_refused(slip: dict) -> None:
    with pytest.raises(ValueError, match="must be at most"):
        wrn.Config(**slip)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_is_a_rate(rate: float) -> None:
    with pytest.raises(ValueError, match=r"model\.dropout"):
        wrn.Config(dropout=rate)


def test_dropout_acts_in_training_alone() -> None:
    config = wrn.Config(depth=10, width=1, dropout=0.5)
    model, x = wrn.build(config, InputSpec((3, 8, 8), 10)), torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_the_seed_fixes_the_initial_weights() -> None:
    torch.manual_seed(3)
    first = build(10, 1).state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(value, first[name]) for name, value in build(10, 1).state_dict().items())
