"""A model is named by its family; a wrong name is answered with the right one."""

import pytest
import torch

from npas import models
from npas.models import InputSpec

SPEC = InputSpec((3, 32, 32), 10)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "name", ["densenet", "resnet_cifar", "resnext", "torchvision", "vgg", "wrn"]
)
def test_a_family_offers_its_config_and_builds_with_its_defaults(name: str) -> None:
    family = models.family(name)
    assert family.Config().family == name
    with torch.device("meta"):
        model = family.build(family.Config(), SPEC)
        assert model.train()(torch.zeros(2, *SPEC.input_shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wnr", "did you mean wrn"),
        ("xyz", "choose from .*densenet, .*torchvision, .*wrn"),
        ("os", "no model family"),
    ],
)
def test_an_unknown_family_is_refused_with_near_names(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.family(name)


def test_a_config_cannot_reach_modules_outside_the_package() -> None:
    for name in ("..sharing", "wrn.Config", "", "__init__", "npas.models.wrn"):
        with pytest.raises(ValueError, match="no model family"):
            models.family(name)


@pytest.mark.parametrize(
    ("name", "given", "asked"),
    [("wrn", "class", "cell"), ("grid_cnn", "cell", "class"), ("wrn", "class", "span")],
)
def test_a_network_that_answers_something_else_than_the_task_asks_is_refused(
    name: str, given: str, asked: str
) -> None:
    config = models.family(name).Config()
    with pytest.raises(ValueError, match=f"model.family={name} gives .* and the task asks for"):
        models.build(config, InputSpec((3, 32, 32), 10, outputs=asked))
    with torch.device("meta"):
        assert parameters(models.build(config, InputSpec((3, 32, 32), 10, outputs=given))) > 0
