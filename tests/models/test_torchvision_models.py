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
        ("efficientnet_b0", 5_288_548),
        ("efficientnet_b1", 7_794_184),
        ("efficientnet_b2", 9_109_994),
        ("efficientnet_b3", 12_233_232),
        ("mobilenet_v2", 3_504_872),
    ],
)
def test_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = torchvision.build(torchvision.Config(name=name), InputSpec((3, 224, 224), 1000))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("name", "count"), [("resnet50", 25_576_264), ("wide_resnet50_2", 68_902_472)]
)
def test_three_convs_as_a_stem_have_the_count_of_the_reference_code(name: str, count: int) -> None:
    config = torchvision.Config(name=name, stem="three_convs")
    with torch.device("meta"):
        model = torchvision.build(config, InputSpec((3, 224, 224), 1000))
        assert model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
        assert model.conv1(torch.zeros(1, 3, 224, 224)).shape == (1, 64, 112, 112)
    assert sum(p.numel() for p in model.parameters()) == count
    convs = [m for m in model.conv1.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convs] == [
        (3, 32, 2),
        (32, 32, 1),
        (32, 64, 1),
    ]


def test_the_stem_starts_as_the_other_convs_do() -> None:
    weight = torchvision.three_convs()[6].weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_the_blocks_of_the_deepest_network_start_as_identities() -> None:
    model = torchvision.build(torchvision.Config(name="resnet200"), InputSpec((3, 32, 32), 10))
    last = [module.weight for name, module in model.named_modules() if name.endswith("bn3")]
    assert len(last) == 66 and not any(weight.any() for weight in last)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "vgg16"])
def test_the_stem_is_for_resnets(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.stem=three_convs is for ResNets.*leave it out"):
        torchvision.Config(name=name, stem="three_convs")


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


def test_blocks_that_start_as_identities_pass_on_what_they_get() -> None:
    network = torchvision.build(
        torchvision.Config(name="resnet18", identities=True), InputSpec((3, 32, 32), 10)
    ).eval()
    x = torch.rand(2, 64, 8, 8)
    assert torch.equal(network.layer1(x), x)
    with pytest.raises(ValueError, match=r"model\.identities=true is for ResNets"):
        torchvision.Config(name="vgg11", identities=True)


@pytest.mark.parametrize("name", ["vit_b_16", "inception_v3"])
def test_a_network_made_for_other_images_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^model.name={name} cannot take images of 3x64x64 \(.*"):
        torchvision.build(torchvision.Config(name=name), InputSpec((3, 64, 64), 10))
