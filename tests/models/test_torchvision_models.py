"""Any classification network of torchvision can be had by its name there."""

import pytest
import torch

from npas.models import InputSpec, torchvision


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 25_557_032),
        ("wide_resnet50_2", 68_883_240),
        ("resnet200", 64_673_832),
        ("densenet264", 33_337_704),
    ],
)
def test_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = torchvision.build(torchvision.Config(name=name), InputSpec((3, 224, 224), 1000))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "inception_v3", "densenet264"])
def test_training_answers_with_one_tensor_of_logits(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.build(torchvision.Config(name=name), InputSpec((3, 96, 96), 7))
        assert model.train()(torch.zeros(2, 3, 96, 96)).shape == (2, 7)


def test_a_misspelled_name_is_refused_with_near_ones() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        torchvision.Config(name="resnet_50")


def test_networks_that_do_not_classify_are_refused() -> None:
    with pytest.raises(ValueError, match="no classification network"):
        torchvision.Config(name="fasterrcnn_resnet50_fpn")


def test_images_that_have_not_three_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1x8x8: choose another task, or a WRN"):
        torchvision.build(torchvision.Config(), InputSpec((1, 8, 8), 10))
