"""A model is named by its family; a wrong name is answered with the right one."""

import pytest
import torch

from npas import models
from npas.models import InputSpec


@pytest.mark.parametrize(
    "name", ["densenet", "resnet_cifar", "resnext", "torchvision", "vgg", "wrn"]
)
def test_a_family_builds_with_its_defaults(name: str) -> None:
    config = models.family(name).Config()
    assert config.family == name
    with torch.device("meta"):
        model = models.build(config, InputSpec((3, 32, 32), 10))
        assert model.train()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wnr", "did you mean wrn"),
        ("xyz", "choose from .*densenet, .*torchvision, .*wrn"),
        # Modules outside the package, and helpers within, are out of reach.
        *((name, "no model family") for name in ("os", "..sharing", "wrn.Config", "", "_hub")),
    ],
)
def test_an_unknown_family_is_refused_with_near_names(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.family(name)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("wrn", "cell"), ("grid_cnn", "class"), ("wrn", "span"), ("simnet", "match"),
     ("bag_of_words", "class"), ("bert", "class"), ("adapt", "regions")],
)  # fmt: skip
def test_a_network_that_answers_something_else_than_the_task_asks_is_refused(
    name: str, asked: str
) -> None:
    config = models.family(name).Config()
    with pytest.raises(ValueError, match=f"model.family={name} gives .* and the task asks for"):
        models.build(config, InputSpec((3, 32, 32), 10, outputs=asked))
