"""The Perceiver is the published one: its counts, its FLOPs, its sharing; and it can be shared."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import npas
from npas.models import InputSpec, perceiver
from npas.reporting.compose import compose

SPEC = InputSpec((3, 224, 224), 1000)
TINY = {"latents": 6, "channels": 8, "cross_attentions": 3, "blocks": 2, "heads": 2, "bands": 3}


def tiny(**keys):
    torch.manual_seed(0)
    settings = TINY | keys
    return perceiver.build(perceiver.Config(**settings), InputSpec((3, 9, 9), 5))


def full(share):
    with torch.device("meta"):
        return perceiver.build(perceiver.Config(share=share), SPEC)


@pytest.mark.parametrize(
    ("share", "count", "published"),
    [("none", 326_241_856, 326.2), ("cross_layer", 44_912_254, 44.9)],
)
def test_counts_and_flops_are_the_published_ones(share, count, published):
    model = full(share)
    assert sum(p.numel() for p in model.parameters()) == count
    assert round(count / 1e6, 1) == published
    assert f"{count:,}" in (perceiver.__doc__ or "")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(SPEC.example("meta")).shape == (1, 1000)
    # 707.2 G in print; of matrix products alone, as torch counts them, a little less.
    assert counter.get_total_flops() == 706_279_096_320


def test_its_sharing_as_groups_leaves_norms_and_biases_apart():
    model = full("none")
    assert npas.plan(model, "44.9M").budget.used == 44_900_000
    sharing = compose("+exp=perceiver_groups_imagenet").sharing
    plan = npas.plan(model, None, groups=sharing.groups, templates=1, generator=sharing.generator)
    cross = (261 * 3 + 1024) + 2 * 1024 + 2 * (261 + 2 * 1024)
    block = 4 * 1024 + 2 * 1024 + 2 * 2 * 1024
    assert plan.budget.used - 44_912_254 == 6 * cross + 7 * 6 * block == 480_918
    assert len(plan.groups) == 42


def test_groups_tie_what_cross_layer_sharing_ties():
    """A network shared by groups computes what the tied one does, once biases and norms agree."""
    # So wide that no two layers' spreads differ much by chance: each would have its own scale.
    tied, apart = (tiny(share=how, blocks=6, channels=64) for how in ("cross_layer", "none"))
    groups = compose("+exp=perceiver_groups_imagenet").sharing.groups
    assert isinstance(groups, dict)
    npas.share(apart, None, groups=groups, templates=1, generator="avg")
    plain = npas.materialize(apart)
    state = plain.state_dict()
    for name in tied.state_dict():
        weight = state[name]
        if name.startswith("crosses.1.") and weight.ndim > 1:
            assert torch.equal(weight, state[name.replace("crosses.1.", "crosses.2.")])
        if name.startswith("stacks.0.") and weight.ndim > 1:
            assert torch.equal(weight, state[name.replace("stacks.0.", "stacks.2.")])
    tied.load_state_dict({name: state[name] for name in tied.state_dict()})
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(tied(x), plain(x))


def test_places_are_fourier_features_of_both_axes():
    model = tiny(bands=2, resolution=8)
    x = torch.randn(2, 3, 4, 6)
    found = model.with_places(x)
    assert found.shape == (2, 24, 3 + 2 * 5)
    row, column = 2, 5
    expected = []
    for place in (-1 + 2 * row / 3, -1 + 2 * column / 5):
        expected += [math.sin(math.pi * f * place) for f in (1, 4)]
        expected += [math.cos(math.pi * f * place) for f in (1, 4)]
        expected += [place]
    torch.testing.assert_close(found[1, row * 6 + column, :3], x[1, :, row, column])
    torch.testing.assert_close(found[1, row * 6 + column, 3:], torch.tensor(expected))
