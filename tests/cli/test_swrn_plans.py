"""Parameter counts of soft sharing equal the reference's; the poster's rows: tests/reporting."""

import functools
import json
from pathlib import Path

import pytest
import torch

import npas
from npas import models
from npas.models import InputSpec, wrn
from npas.reporting.compose import compose, planned_count
from npas.sharing.layers import find_layers

COUNTS = Path(__file__).parents[1] / "sharing" / "oracle" / "swrn_counts.json"
KNOWN = json.loads(COUNTS.read_text())


@functools.cache
def network(*overrides):
    """Build the dense network of these arguments on the meta device."""
    config = compose(*overrides)
    imagenet = config.task.family == "imagenet"
    spec = InputSpec((3, 224, 224), 1000) if imagenet else InputSpec((3, 32, 32), 10)
    with torch.device("meta"):
        return models.family(config.model.family).build(config.model, spec)


def planned(*overrides):
    """Plan what the arguments say, by `npas.plan`."""
    sharing = compose(*overrides).sharing
    return npas.plan(network(*overrides), templates=sharing.templates, groups=sharing.groups)


@pytest.mark.slow
def test_counts_are_exact():
    assert len(KNOWN) == 72
    groups = compose("+exp=swrn_cifar10").sharing.groups
    for row in (row for row in KNOWN if row["classes"] == 10 or row["width"] == 10):
        config = wrn.Config(depth=row["depth"], width=row["width"])
        with torch.device("meta"):
            model = wrn.build(config, InputSpec((3, 32, 32), row["classes"]))
        if not row["templates"]:
            assert npas.count_parameters(model) == row["params"]
            continue
        plan = npas.plan(model, templates=row["templates"], groups=groups)
        assert plan.budget.used == row["params"], row
        assert plan.split["coefficients"] == row["coefficients"]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (("+exp=swrn_cifar10",), 17_125_630),
        (("+exp=swrn_cifar10", "sharing.templates=layers"), 36_479_302),
        (("+exp=swrn_cifar100", "model.width=6"), 6_212_184),
        (("+exp=swrn_imagenet",), 68_883_240 + 3 * (2 * 2 + 3 * 3 + 5 * 5 + 2 * 2)),
        (("+exp=swrn_40_8_8",), 29_555_402),
    ],
)
def test_an_experiment_plans_the_same_counts(overrides, count):
    assert planned_count(*overrides) == count


@pytest.mark.parametrize(
    ("exp", "start"),
    {
        **dict.fromkeys(("swrn_cifar10", "swrn_imagenet", "swrn_40_8_8"), "released"),
        "digits_swrn": "orthogonal",  # of committed results
        "shortest_paths_small": "orthogonal",
    }.items(),
)
def test_what_reproduces_a_paper_starts_as_its_code(exp, start):
    assert compose(f"+exp={exp}").sharing.coefficient_init == start


def test_a_stage_shares_its_3x3_convs_behind_the_first_block():
    plan = planned("+exp=swrn_cifar10")
    for stage, group in enumerate(plan.groups):
        names = [f"stages.{stage}.{b}.conv{c}.weight" for b in (1, 2, 3) for c in (1, 2)]
        assert group.name == f"stage{stage}"
        assert [layer.name for layer in group.layers] == names
    # A block of two digits is not taken for the first: 22 blocks a stage, 42 layers behind it.
    plan = planned("+exp=swrn_cifar10", "model.depth=136", "model.width=1")
    assert [len(group.layers) for group in plan.groups] == [42, 42, 42]


def test_a_bottleneck_stage_shares_first_with_first_and_last_with_last():
    plan = planned("+exp=swrn_imagenet")
    assert len(plan.groups) == 12
    names = [layer.name for layer in plan.groups[6].layers]
    assert names == [f"layer3.{block}.conv1.weight" for block in range(1, 6)]
    shared = {layer.name for layer in plan.layers}
    unshared = {layer.spec.name for layer in find_layers(network("+exp=swrn_imagenet"))} - shared
    assert all(".0." in name or name in ("conv1.weight", "fc.weight") for name in unshared)
