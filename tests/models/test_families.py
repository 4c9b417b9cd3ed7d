"""Every model family has its published sizes, builds, shares and refuses invalid keys."""

import pytest
import torch
from network_inputs import SIMNET, inputs, spec

import npas
from npas import models
from npas.models import InputSpec
from npas.reporting.compose import compose

IMAGES = InputSpec((3, 16, 16), 10)
PERCEIVER = {"latents": 6, "channels": 8, "cross_attentions": 2}
PERCEIVER |= {"blocks": 2, "heads": 2, "bands": 3}
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


CIFAR10, CIFAR100 = (InputSpec((3, 32, 32), classes) for classes in (10, 100))
IMAGENET = InputSpec((3, 224, 224), 1000)
SPAN, PRETRAINING = (InputSpec((384,), 2, answers) for answers in ("span", "pretraining"))
SMALL, GOLF = InputSpec((64,), 65, "token"), InputSpec((1024,), 1024, "token")
FULL = InputSpec((1024,), 50_257, "token")
MATCH = spec("match", 300, 2048)
COUNTS = [
    ("wrn", {}, CIFAR10, 36_479_194),
    ("wrn", {}, CIFAR100, 36_536_884),
    ("wrn", {"depth": 16, "width": 8}, CIFAR100, 11_007_540),
    ("wrn", {"depth": 40, "width": 2}, CIFAR100, 2_255_156),
    # 0.27M to 1.7M in table 6 of He et al. (2016)
    ("resnet_cifar", {"depth": 20}, CIFAR10, 269_722),
    ("resnet_cifar", {"depth": 56}, CIFAR10, 853_018),
    ("resnet_cifar", {"depth": 110}, CIFAR10, 1_727_962),
    ("resnext", {}, CIFAR10, 68_155_210),
    ("resnext", {}, CIFAR100, 68_247_460),
    ("densenet", {}, CIFAR10, 27_249_082),
    ("densenet", {"depth": 40, "growth": 12}, CIFAR10, 1_019_722),
    ("densenet", {"depth": 190, "growth": 40, "bottleneck": True}, CIFAR10, 25_624_430),
    ("densenet", {"depth": 100, "growth": 12, "bottleneck": True}, CIFAR10, 769_162),
    ("vgg", {}, CIFAR10, 14_728_266),
    ("vgg", {"hidden": 512}, CIFAR10, 14_991_946),
    ("grid_cnn", {"depth": 16, "width": 16}, InputSpec((2, 12, 12), 1, "cell"), 37_713),
    ("torchvision", {"name": "resnet50"}, IMAGENET, 25_557_032),
    ("torchvision", {"name": "wide_resnet50_2"}, IMAGENET, 68_883_240),
    ("torchvision", {"name": "resnet50", "stem": "three_convs"}, IMAGENET, 25_576_264),
    ("torchvision", {"name": "wide_resnet50_2", "stem": "three_convs"}, IMAGENET, 68_902_472),
    ("torchvision", {"name": "resnet200"}, IMAGENET, 64_673_832),
    ("torchvision", {"name": "densenet264"}, IMAGENET, 33_337_704),
    ("torchvision", {"name": "efficientnet_b0"}, IMAGENET, 5_288_548),
    ("torchvision", {"name": "efficientnet_b3"}, IMAGENET, 12_233_232),
    ("perceiver", {}, IMAGENET, 326_241_856),
    ("perceiver", {"share": "cross_layer"}, IMAGENET, 44_912_254),
    ("torchvision", {"name": "mobilenet_v2"}, IMAGENET, 3_504_872),
    ("timm", {"name": "mobilenetv3_small_100"}, IMAGENET, 2_542_856),
    ("timm", {"name": "vit_small_patch16_224"}, IMAGENET, 22_050_664),
    ("bert", "bert_large", SPAN, 334_094_338),
    ("bert", "bert_base", SPAN, 108_893_186),
    ("bert", "albert_large", SPAN, 16_636_418),
    ("bert", "albert_base", SPAN, 11_094_530),
    ("bert", "bert_large", PRETRAINING, 336_226_108),
    ("bert", "bert_base", PRETRAINING, 110_106_428),
    ("bert", "albert_large", PRETRAINING, 17_847_474),
    ("bert", "albert_base", PRETRAINING, 11_813_810),
    # nanoGPT's own, positions included, and the contest's baseline
    ("gpt", {"layers": 4, "heads": 4, "width": 128, "bias": False}, SMALL, 804_096),
    ("gpt", {"layers": 12, "heads": 12, "width": 768, "bias": True}, FULL, 124_439_808),
    ("golf", {}, GOLF, 17_059_912),
    ("simnet", {"boxes": False}, spec("regions", 300, 2048), 5_821_185),
    ("simnet", {"boxes": False}, spec("regions", 6000, 2048), 11_657_985),
    ("bag_of_words", {"boxes": False}, spec("regions", 300, 2048), 601_601),
    ("adapt", {"vocab_size": 8481}, MATCH, 16_731_820),
    ("adapt", {"vocab_size": 11_755}, MATCH, 17_714_020),
    ("two_branch", {}, MATCH, 6_919_168),
    ("two_branch", {"sentence": "attention"}, MATCH, 6_919_769),
]
IN_THEIR_TEXTS = ("perceiver", "torchvision", "timm", "bert", "adapt", "two_branch", "simnet")


@pytest.mark.parametrize(("family", "keys", "asked", "count"), COUNTS, ids=lambda of: str(of)[:30])
def test_counts_are_the_published_ones(family, keys, asked, count):
    if isinstance(keys, str):  # a preset
        config = compose(f"model={keys}", "task=squad1").model
    else:
        config = models.family(family).Config(**keys)
    with torch.device("meta"):
        model = models.build(config, asked)
    assert sum(p.numel() for p in model.parameters()) == count
    assert family not in IN_THEIR_TEXTS or f"{count:,}" in (models.family(family).__doc__ or "")


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


def test_an_unknown_family_is_refused_with_near_names():
    with pytest.raises(ValueError, match="did you mean wrn"):
        models.family("wnr")
    # Modules outside the package, and helpers within, are out of reach.
    for name in ("os", "..sharing", "wrn.Config", "", "_hub"):
        with pytest.raises(ValueError, match="there is no model family"):
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
    ("family", "slip", "message"),
    [
        ("wrn", {"depth": 17}, "a WRN has 6n + 4 layers; the nearest is 16 or 22"),
        ("resnet_cifar", {"depth": 57}, "nearest is 56 or 62"),
        ("resnext", {"depth": 30}, "a ResNeXt has 9n + 2 layers; the nearest is 29 or 38"),
        ("resnext", {"cardinality": 1000, "width": 64}, "model.width must be at most 8"),
        ("densenet", {"depth": 99}, "a DenseNet has 3n + 4 layers; the nearest is 97 or 100"),
        ("densenet", {"depth": 189, "bottleneck": True}, "DenseNet-BC has 6n + 4 layers; the"),
        ("torchvision", {"name": "resnet_50"}, "resnet50"),
        ("torchvision", {"name": "vgg16", "stem": "three_convs"}, "stem=three_convs is for Res"),
        ("torchvision", {"name": "vgg11", "identities": True}, "identities=true is for ResNets"),
        ("timm", {"name": "mobilenet_v3_small_100"}, "mobilenetv3_small_100"),
        ("timm", {"name": "zzzzqq"}, "is not a network of timm; see timm.list_models()"),
        ("perceiver", {"heads": 3}, "model.channels=1024 is not divisible by model.heads=3"),
        ("bert", {"heads": 5}, "model.hidden=768 is not divisible by model.heads=5"),
        ("bert", {"arch": "albert"}, "an ALBERT needs a width"),
        ("bert", {"embedding": 8}, "set it to null"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_refused(family, slip, message):
    with pytest.raises(ValueError) as error:
        models.family(family).Config(**slip)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "keys", "shape", "message"),
    [
        ("vgg", {}, (3, 8, 8), "halves an image four times, and the task's have 8x8"),
        ("torchvision", {}, (1, 8, 8), "reads 3-channel images, and an input of this task is 1x8"),
        ("torchvision", {"name": "squeezenet1_0"}, (3, 8, 8), "cannot take images of 3x8x8 ("),
        ("timm", {}, (12,), "reads any-channel images, and an input of this task is 12"),
    ],
)
def test_images_that_do_not_fit_are_refused(family, keys, shape, message):
    with pytest.raises(ValueError) as error:
        build(family, keys, InputSpec(shape, 10))
    assert message in str(error.value) and "\n" not in str(error.value)
