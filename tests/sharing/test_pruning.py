"""Pruned filters: masks, what is left without them, which are chosen, what is refused."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

import npas
from npas import models
from npas.models import InputSpec, vgg
from npas.sharing.trained import pruning

SPEC = InputSpec((3, 16, 16), 10)
FAMILIES = {
    "vgg": {},
    "vgg, hidden": {"hidden": 16},
    "resnet_cifar": {"depth": 8},
    "wrn": {"depth": 10, "width": 0.5},
    "densenet": {"depth": 13, "growth": 4},
    "densenet, bottleneck": {"depth": 16, "growth": 4, "bottleneck": True},
}


@pytest.fixture(autouse=True)
def narrow_vgg(monkeypatch):
    """Build VGG-16 with an eighth of its filters."""
    stages = tuple(tuple(width // 8 for width in widths) for widths in vgg.STAGES)
    monkeypatch.setattr(vgg, "STAGES", stages)


def build(name="wrn", budget=None):
    """Build a network whose filters have masks, and whose norms are as trained ones are."""
    torch.manual_seed(0)
    config = models.family(name.partition(",")[0]).Config(**FAMILIES[name])
    model = models.build(config, SPEC).double()
    if budget is not None:
        npas.share(model, budget)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return pruning.mask_filters(model, models.filters_of(config, model))


def batch(size=4):
    return torch.randn(size, 3, 16, 16, generator=torch.manual_seed(1)).double()


@pytest.mark.parametrize("budget", [None, 0.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_shrunk_network_computes_what_the_masked_one_does(name, budget):
    model = build(name, budget)
    images = batch()
    before = model.eval()(images)
    pruning.prune_filters(model, 0.4, pruning.feature_ranks(model, lambda: model(images)))
    expected, kept = model(images), pruning.kept_filters(model)
    assert not torch.allclose(before, expected)
    count = npas.count_parameters(model)
    small = pruning.shrink(copy.deepcopy(model))
    torch.testing.assert_close(small(images), expected, rtol=1e-12, atol=1e-12)
    for conv, mask_F in kept.items():
        module = small.get_submodule(conv)
        assert len(module.weight) == module.out_channels == mask_F.sum() < len(mask_F)
    assert not any(name.endswith("kept") for name in small.state_dict())
    assert not any(module._forward_hooks for module in small.modules())
    if budget is None:
        assert npas.count_parameters(small) < count
        # Without a mask, zeros in the norms give the same outputs.
        silenced = pruning.silence(copy.deepcopy(model)).state_dict()
        plain = build(name)
        plain.load_state_dict({k: v for k, v in silenced.items() if not k.endswith("kept")}, False)
        assert torch.equal(plain.eval()(images), expected)
    # The plain architecture takes the tensors of the smaller one, and trains on.
    config = models.family(name.partition(",")[0]).Config(**FAMILIES[name])
    again = npas.sharing.resize(models.build(config, SPEC).double(), small.state_dict())
    assert torch.equal(again.eval()(images), small(images))
    again.train()(images).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in again.parameters())


def test_a_pruned_filter_stays_out_of_training():
    model = build("vgg").train()
    pruning.prune_filters(model, 0.5)
    mask_F = pruning.kept_filters(model)["features.0"]
    with torch.no_grad():
        model.get_parameter("features.0.weight")[~mask_F] = 99.0
    model(batch()).square().sum().backward()
    for name in ("features.1.weight", "features.1.bias"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert (gradient[~mask_F] == 0).all() and (gradient[mask_F] != 0).any()


def test_magnitudes_are_l1_norms_and_ranks_those_of_the_maps_behind_relu():
    model, images = build("resnet_cifar").eval(), batch(3)
    conv = "stages.1.0.conv1"
    weight = model.get_parameter(f"{conv}.weight")
    assert torch.equal(pruning.magnitudes(model)[conv], weight.detach().abs().sum((1, 2, 3)))
    maps = []
    hook = model.get_submodule("stages.1.0.norm1").register_forward_hook(
        lambda module, args, output: maps.append(output.detach().relu())
    )
    found = pruning.feature_ranks(model, lambda: [model(image[None]) for image in images])[conv]
    hook.remove()
    singular = torch.linalg.svdvals(torch.cat(maps).float())
    tolerance = 8 * torch.finfo(torch.float32).eps
    expected = (singular > tolerance * singular[..., :1]).sum((0, 2))
    assert found.tolist() == expected.tolist() and expected.max() > expected.min()


def test_ranking_leaves_every_module_in_its_own_mode():
    model = build("wrn", budget=0.5).train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    pruning.feature_ranks(model, lambda: model(batch(2)))
    assert model.training and not frozen.training


def test_the_lowest_go_first_and_none_comes_back():
    model = build("wrn")
    scores = {c: torch.arange(len(m)).double() for c, m in pruning.kept_filters(model).items()}
    first = pruning.prune_filters(model, {"stages.0.*": 0.25, "stages.[01].*": 0.5}, scores)
    assert first["stages.0.0.conv1"] == [2, 3, 4, 5, 6, 7]
    assert first["stages.1.0.conv1"] == [*range(8, 16)]
    assert first["stages.2.0.conv1"] == [*range(32)]
    upside_down = {conv: -values for conv, values in scores.items()}
    second = pruning.prune_filters(model, 0.5, upside_down)
    assert second["stages.0.0.conv1"] == [2, 3, 4, 5]
    assert second["stages.2.0.conv1"] == [*range(16)]
    alike = {conv: torch.ones(len(values)) for conv, values in scores.items()}
    assert pruning.prune_filters(model, 0.75, alike)["stages.0.0.conv1"] == [4, 5]


def test_a_masked_network_is_saved_and_loaded_into_one_that_is_masked_alike(tmp_path):
    model = build("vgg", 0.5)
    pruning.prune_filters(model, 0.5)
    npas.save(model, tmp_path / "saved")
    npas.write_artifact(model, tmp_path / "artifact.npas")
    for read in (
        partial(npas.load, tmp_path / "saved"),
        partial(npas.read_artifact, tmp_path / "artifact.npas"),
    ):
        again = read(build("vgg"))
        found, expected = (pruning.kept_filters(network) for network in (again, model))
        assert all(torch.equal(found[conv], mask_F) for conv, mask_F in expected.items())
        images = batch()
        before = again.eval()(images)
        assert torch.equal(before, model.eval()(images)) == (read.func is npas.load)
        torch.testing.assert_close(pruning.shrink(again)(images), before)


REFUSED = [
    (lambda m: pruning.prune_filters(m, {"fc": 0.5}), "matches 'fc': there are stages.0.0.conv1"),
    (lambda m: pruning.prune_filters(m, {"*": 1.0}), "at least 0 and below 1, got 1.0"),
    (lambda m: pruning.prune_filters(m, 0.9), "leaves none of the 8 filters of stages.0.0.conv1"),
    (lambda m: pruning.prune_filters(m, 0.0), "an amount of 0 prunes nothing"),
    (lambda m: pruning.keep(m, dict.fromkeys(pruning.kept_filters(m), ())), "would be left"),
    (lambda m: pruning.mask_filters(m, {}), "has masks already"),
    (lambda m: pruning.mask_filters(nn.Linear(2, 2), {}), "no filters that can be pruned"),
    (lambda m: pruning.mask_filters(nn.Linear(2, 2), {"a": [("b", "c", 0)]}), "no module 'a'"),
    (lambda m: pruning.mask_filters(pruning.shrink(m), {"stem": []}), "nothing reads stem"),
    (
        lambda m: pruning.mask_filters(
            pruning.shrink(m), {"stem": [("stages.0.0.norm2", "stages.0.0.conv2", 0)]}
        ),
        "stages.0.0.norm2 and stages.0.0.conv2 do not read stem",
    ),
    (
        lambda m: pruning.mask_filters(nn.Sequential(nn.ReLU()), {"0": [("0", "0", 0)]}),
        "0 and 0 do not read 0 from channel 0 on",
    ),
    (
        lambda m: pruning.mask_filters(nn.Sequential(nn.ReLU()), {"0": ["0"]}),
        "the readers of 0 must be tuples (norm, layer, first channel), not ['0']",
    ),
    (lambda m: pruning.shrink(pruning.shrink(m)), "the network has no masks"),
    (lambda m: pruning.feature_ranks(m, lambda: None), "no batch was passed"),
    (lambda m: pruning.resize(pruning.shrink(m), {}), "another architecture's: only one has"),
    (
        lambda m: pruning.resize(
            pruning.shrink(m), {k: torch.ones(99) for k in build().state_dict() if "kept" not in k}
        ),
        "is not a pruned",
    ),
    (lambda m: models.filters_of(models.family("gpt").Config(), m), "no filters that can be"),
]


@pytest.mark.parametrize(("ask", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_invalid_requests_are_refused_in_one_line(ask, message):
    model = build("wrn")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        ask(model)
    assert "\n" not in str(error.value)


def test_the_small_network_that_hrank_would_leave_has_hand_counted_parameters():
    """Of ResNet-8 half the inner filters: each takes a filter, a norm's two, and a channel."""
    model = build("resnet_cifar")
    dense = npas.count_parameters(model)
    pruning.prune_filters(model, 0.5)
    gone = sum(8 * 2**n * (9 * before + 2 + 9 * 16 * 2**n) for n, before in enumerate((16, 16, 32)))
    assert npas.count_parameters(pruning.shrink(model)) == dense - gone
