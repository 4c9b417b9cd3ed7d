"""Any classification network of timm can be had by its name there, where timm is installed."""

import sys

import pytest
import torch

from npas.models import InputSpec, timm

SPEC = InputSpec((3, 64, 64), 7)


@pytest.mark.parametrize(
    ("name", "count"), [("mobilenetv3_small_100", 2_542_856), ("vit_small_patch16_224", 22_050_664)]
)
def test_counts_are_those_that_timm_lists(name: str, count: int) -> None:
    with torch.device("meta"):
        model = timm.build(timm.Config(name=name), InputSpec((3, 224, 224), 1000))
    assert sum(p.numel() for p in model.parameters()) == count
    assert f"{name}: {count:,}" in (timm.__doc__ or "")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "resnet50.a1_in1k"])
def test_networks_are_made_for_the_task_s_images_and_classes(name: str) -> None:
    with torch.device("meta"):
        model = timm.build(timm.Config(name=name), SPEC)
        assert model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_grey_images_will_do() -> None:
    with torch.device("meta"):
        model = timm.build(timm.Config(name="resnet18"), InputSpec((1, 32, 32), 10))
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_dropout_reaches_the_network() -> None:
    with torch.device("meta"):
        model = timm.build(timm.Config(name="resnet18", dropout=0.3), SPEC)
    assert model.drop_rate == 0.3


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ({"name": "mobilenet_v3_small_100"}, "did you mean .*mobilenetv3_small_100"),
        ({"name": "zzzzqq"}, r"is no network of timm; timm\.list_models\(\) has them"),
        ({"dropout": 1.0}, r"model\.dropout"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line(slip: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        timm.Config(**slip)
    assert len(str(error.value)) < 200


def test_inputs_that_are_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="reads images, and an input of this task is 12"):
        timm.build(timm.Config(), InputSpec((12,), 3))


def test_what_timm_cannot_build_is_said_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*anything: object, **keys: object) -> None:
        raise AssertionError("height 64 is not divisible by 14\nand more")

    monkeypatch.setattr("timm.create_model", refuse)
    with pytest.raises(ValueError, match=r"mobilenetv3_small_100 for .*3x64x64: height"):
        timm.build(timm.Config(), SPEC)


def test_without_timm_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        timm.Config()
