"""Every model family builds, shares and refuses invalid keys."""

import pytest
import torch
from network_inputs import inputs, spec

import npas
from npas import models
from npas.models import InputSpec

IMAGES = InputSpec((3, 16, 16), 10)
PERCEIVER = {
    "latents": 6,
    "channels": 8,
    "cross_attentions": 2,
    "blocks": 2,
    "heads": 2,
    "bands": 3,
}
SIMNET = [
    {}, {"boxes": False}, {"normalize": "regions"}, {"phrase": "attention"}, {"phrase": "gru"},
    {"embeddings": 3}, {"embeddings": 2, "phrase": "gru"},
]  # fmt: skip
TINY = [
    ("wrn", {"depth": 10, "width": 1, "dropout": 0.5}, IMAGES),
    ("resnet_cifar", {"depth": 8}, IMAGES),
    ("resnext", {"depth": 11, "cardinality": 2, "width": 4}, IMAGES),
    ("densenet", {"depth": 10, "growth": 4, "dropout": 0.5}, IMAGES),
    ("densenet", {"depth": 10, "growth": 4, "bottleneck": True}, IMAGES),
    ("vgg", {"hidden": 16}, IMAGES),
    ("torchvision", {"name": "squeezenet1_0"}, InputSpec((3, 32, 32), 10)),
    ("grid_cnn", {"depth": 3, "width": 4}, InputSpec((2, 7, 9), 1, "cell")),
    ("perceiver", {**PERCEIVER, "dropout": 0.5}, InputSpec((3, 5, 12), 10)),
    *(("simnet", {"width": 4, **keys}, spec("regions")) for keys in SIMNET),
    ("bag_of_words", {"width": 32}, spec("regions")),
]


def build(family, keys, asked):
    torch.manual_seed(3)
    return models.build(models.family(family).Config(**keys), asked)


@pytest.mark.parametrize(("family", "keys", "asked"), TINY, ids=lambda of: str(of)[:20])
def test_all_of_a_shared_network_trains_and_a_seed_means_the_same_weights(family, keys, asked):
    model, again = build(family, keys, asked), build(family, keys, asked).state_dict()
    assert models.family(family).Config().family == family
    for name, value in model.state_dict().items():
        assert torch.equal(value, again[name]), name
    given = inputs("regions") if asked.inputs else {"x": torch.randn(2, *asked.input_shape)}
    model = npas.share(model, 0.8)
    answer = model(*given.values()) if "x" in given else model(**given)
    answer.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if keys.get("dropout"):  # which acts in training alone
        x = given["x"]
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wnr", "did you mean wrn"),
        ("xyz", "choose from .*densenet, .*torchvision, .*wrn"),
        # Modules outside the package, and helpers within, are out of reach.
        *((name, "no model family") for name in ("os", "..sharing", "wrn.Config", "", "_hub")),
    ],
)
def test_an_unknown_family_is_refused_with_near_names(name, said):
    with pytest.raises(ValueError, match=said):
        models.family(name)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("wrn", "cell"), ("grid_cnn", "class"), ("wrn", "span"), ("simnet", "match"),
     ("bag_of_words", "class"), ("bert", "class"), ("adapt", "regions")],
)  # fmt: skip
def test_a_network_that_answers_something_else_than_the_task_asks_is_refused(name, asked):
    config = models.family(name).Config()
    with pytest.raises(ValueError, match=f"model.family={name} gives .* and the task needs"):
        models.build(config, InputSpec((3, 32, 32), 10, outputs=asked))


@pytest.mark.parametrize(
    ("family", "slip", "said"),
    [
        ("wrn", {"depth": 17}, "a WRN has 6n + 4 layers; the nearest is 16 or 22"),
        ("resnet_cifar", {"depth": 57}, "nearest is 56 or 62"),
        ("resnext", {"depth": 30}, "a ResNeXt has 9n + 2 layers; the nearest is 29 or 38"),
        ("resnext", {"cardinality": 1000, "width": 64}, "model.width must be at most 8"),
        ("densenet", {"depth": 99}, "a DenseNet has 3n + 4 layers; the nearest is 97 or 100"),
        ("densenet", {"depth": 189, "bottleneck": True}, "DenseNet-BC has 6n + 4 layers; the"),
        ("torchvision", {"name": "resnet_50"}, "resnet50"),
        ("torchvision", {"name": "fasterrcnn_resnet50_fpn"}, "not a classification network"),
        (
            "torchvision",
            {"name": "vgg16", "stem": "three_convs"},
            "stem=three_convs is for ResNets",
        ),
        ("torchvision", {"name": "vgg11", "identities": True}, "identities=true is for ResNets"),
        ("timm", {"name": "mobilenet_v3_small_100"}, "mobilenetv3_small_100"),
        ("timm", {"name": "zzzzqq"}, "is not a network of timm; see timm.list_models()"),
        ("perceiver", {"heads": 3}, "model.channels=1024 is not divisible by model.heads=3"),
        ("gpt", {"width": 10}, "model.width=10 is not divisible by model.heads=4"),
        ("bert", {"heads": 5}, "model.hidden=768 is not divisible by model.heads=5"),
        ("bert", {"arch": "albert"}, "an ALBERT needs a width"),
        ("bert", {"embedding": 8}, "set it to null"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_refused(family, slip, said):
    with pytest.raises(ValueError) as error:
        models.family(family).Config(**slip)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "keys", "shape", "said"),
    [
        ("vgg", {}, (3, 8, 8), "halves an image four times, and the task's have 8x8"),
        (
            "torchvision",
            {},
            (1, 8, 8),
            "reads 3-channel images, and an input of this task is 1x8x8: choose another",
        ),
        ("torchvision", {"name": "squeezenet1_0"}, (3, 8, 8), "cannot take images of 3x8x8 ("),
        ("timm", {}, (12,), "reads any-channel images, and an input of this task is 12"),
        ("perceiver", PERCEIVER, (12,), "images, and an input of this task is 12"),
    ],
)
def test_images_that_do_not_fit_are_refused(family, keys, shape, said):
    with pytest.raises(ValueError) as error:
        build(family, keys, InputSpec(shape, 10))
    assert said in str(error.value) and "\n" not in str(error.value)
