"""The counts of soft sharing, as npas-plan prints them, are the reference's."""

import functools
import json
from pathlib import Path

import pytest
import torch
from command_line import SMALL, Run
from torch import nn

import npas
from npas import models
from npas.models import InputSpec, wrn
from npas.reporting.compose import compose
from npas.sharing.layers import find_layers

COUNTS = Path(__file__).parents[1] / "sharing" / "oracle" / "swrn_counts.json"
KNOWN = {
    (row["depth"], row["width"], row["templates"], row["classes"]): row
    for row in json.loads(COUNTS.read_text())
}
# The poster's SWRN rows: depth, width, templates and the CIFARs; without a k one a layer.
POSTER = [(28, 6, 2), (28, 10, "layers"), (28, 10, 2), (28, 14, "layers"), (28, 14, 2)]
POSTER += [(28, 18, "layers"), (28, 18, 2)]


@functools.cache
def network(*arguments: str) -> nn.Module:
    """Build the dense network of these arguments on the meta device."""
    config = compose(*arguments)
    with torch.device("meta"):
        shape = (3, 224, 224) if config.task.family == "imagenet" else (3, 32, 32)
        classes = 1000 if config.task.family == "imagenet" else config.task.classes
        return models.family(config.model.family).build(config.model, InputSpec(shape, classes))


def planned(*arguments: str) -> npas.Allocation:
    """Plan what the arguments say, by `npas.plan`."""
    config = compose(*arguments)
    groups = config.sharing.groups
    return npas.plan(network(*arguments), templates=config.sharing.templates, groups=groups)


@pytest.mark.parametrize(("depth", "width", "templates", "classes"), sorted(KNOWN))
def test_counts_are_exact(depth: int, width: int, templates: int, classes: int) -> None:
    row = KNOWN[depth, width, templates, classes]
    with torch.device("meta"):
        spec = InputSpec((3, 32, 32), classes)
        model = wrn.build(wrn.Config(depth=depth, width=width), spec)
    if not templates:
        assert npas.count_parameters(model) == row["params"]
        return
    groups = compose("+exp=swrn_cifar10").sharing.groups
    plan = npas.plan(model, templates=templates, groups=groups)
    assert plan.budget.used == row["params"]
    assert plan.split["coefficients"] == row["coefficients"]


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(("depth", "width", "templates"), POSTER)
def test_every_row_of_the_poster_counts_as_published(
    depth: int, width: int, templates: int | str, classes: int
) -> None:
    layers = 2 * ((depth - 4) // 6 - 1)  # that share, in each stage
    row = KNOWN[depth, width, layers if templates == "layers" else templates, classes]
    arguments = f"model.depth={depth}", f"model.width={width}", f"sharing.templates={templates}"
    assert planned(f"+exp=swrn_cifar{classes}", *arguments).budget.used == row["params"]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("+exp=swrn_cifar10",), 17_125_630),
        (("+exp=swrn_cifar10", "sharing.templates=layers"), 36_479_302),
        (("+exp=swrn_cifar100", "model.width=6"), 6_212_184),
        (("+exp=swrn_imagenet",), 68_883_240 + 3 * (2 * 2 + 3 * 3 + 5 * 5 + 2 * 2)),
        (("+exp=swrn_40_8_8",), 29_555_402),
    ],
)
def test_npas_plan_prints_the_same_counts(arguments: tuple[str, ...], count: int, run: Run) -> None:
    answer = run("npas-plan", *arguments, "format=json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["budget"]["used"] == count == planned(*arguments).budget.used


@pytest.mark.parametrize(
    ("exp", "start"),
    {
        "swrn_cifar10": "released",
        "swrn_cifar100": "released",
        "swrn_imagenet": "released",
        "swrn_40_8_8": "released",
        "digits_swrn": "orthogonal",  # of committed results
        "shortest_paths_small": "orthogonal",
    }.items(),
)
def test_what_reproduces_a_paper_starts_as_its_code(exp: str, start: str) -> None:
    assert compose(f"+exp={exp}").sharing.coefficient_init == start


def test_a_stage_shares_its_3x3_convs_behind_the_first_block() -> None:
    plan = planned("+exp=swrn_cifar10")
    for stage, group in enumerate(plan.groups):
        names = [f"stages.{stage}.{b}.conv{c}.weight" for b in (1, 2, 3) for c in (1, 2)]
        assert group.name == f"stage{stage}"
        assert [layer.name for layer in group.layers] == names


def test_a_block_of_two_digits_is_not_taken_for_the_first() -> None:
    """Also in the deepest: 22 blocks a stage, 42 layers behind the first."""
    plan = planned("+exp=swrn_cifar10", "model.depth=136", "model.width=1")
    assert [len(group.layers) for group in plan.groups] == [42, 42, 42]


def test_a_bottleneck_stage_shares_first_with_first_and_last_with_last() -> None:
    plan = planned("+exp=swrn_imagenet")
    assert len(plan.groups) == 12
    names = [layer.name for layer in plan.groups[6].layers]
    assert names == [f"layer3.{block}.conv1.weight" for block in range(1, 6)]
    shared = {layer.name for layer in plan.layers}
    unshared = {layer.spec.name for layer in find_layers(network("+exp=swrn_imagenet"))} - shared
    assert all(".0." in name or name in ("conv1.weight", "fc.weight") for name in unshared)


@pytest.mark.parametrize("templates", ["1", "2", "layers"])
def test_an_swrn_trains_on_the_digits(templates: str, run: Run, tmp_path: Path) -> None:
    arguments = [word for word in SMALL if not word.startswith("model.depth")]
    asked = f"sharing.templates={templates}", "model.depth=16"
    answer = run("npas-train", "+exp=digits_swrn", *arguments, *asked)
    assert answer.code == 0, answer.err
    (result,) = tmp_path.glob("runs/digits_swrn/*/result.json")
    split = json.loads(result.read_text())["split"]
    kept = {"1": 1, "2": 2, "layers": 2}[templates]
    assert split["bank"] == kept * 9 * (8 * 8 + 16 * 16 + 32 * 32)
    assert split["coefficients"] == kept * 6
