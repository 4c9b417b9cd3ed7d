"""npas-plan says what would be allocated, exactly, and reads no data."""

import json
from pathlib import Path

import pytest
from command_line import Run

BUDGETS = [("wrn_cifar100", b) for b in ("0.01", "0.1", "1.5")] + [("resnet50_imagenet", "2")]


def plan(run: Run, *arguments: str) -> dict:
    answer = run("npas-plan", "format=json", *arguments)
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


@pytest.mark.parametrize(("exp", "budget"), BUDGETS)
def test_a_plan_keeps_its_budget(exp: str, budget: str, run: Run, tmp_path: Path) -> None:
    found = plan(run, f"+exp={exp}", f"budget={budget}")
    counts = found["budget"]
    assert counts["asked"] == budget
    assert counts["allowed"] == int(float(budget) * counts["dense"])
    slack = counts["allowed"] - counts["used"]
    assert 0 <= slack <= max(0.001 * counts["allowed"], len(found["layers"]))
    assert sum(found["split"].values()) == counts["used"]
    assert not list(tmp_path.iterdir())


def test_a_budget_below_the_floor_names_the_floor(run: Run) -> None:
    answer = run("npas-plan", "+exp=wrn_cifar100", "budget=1K")
    assert answer.code == 2
    assert "needs at least" in answer.err


def test_the_json_is_one_object_of_known_keys(run: Run) -> None:
    found = plan(run, "+exp=wrn_cifar10", "budget=10%")
    assert set(found) == {"budget", "split", "groups", "layers", "flops", "input_shape", "artifact"}
    assert set(found["budget"]) == {"asked", "dense", "allowed", "used", "utilization"}
    assert found["budget"]["dense"] == 36_479_194
    assert isinstance(found["layers"], list) and isinstance(found["groups"], list)


def test_flops_do_not_change_with_the_budget(run: Run) -> None:
    flops = {plan(run, "+exp=wrn_cifar10", f"budget={b}")["flops"] for b in ("0.1", "2", "dense")}
    (count,) = flops
    # WRN-28-10 has about 5.2 G multiply-adds an image (Zagoruyko & Komodakis, 2016).
    assert 2 * 5.1e9 < count < 2 * 5.4e9


def test_a_dense_plan_has_the_same_form(run: Run) -> None:
    found = plan(run, "budget=dense")
    counts = found["budget"]
    assert counts["asked"] == "dense"
    assert counts["used"] == counts["allowed"] == counts["dense"] == found["split"]["unshared"]
    assert found["layers"] == found["groups"] == []
    assert "nothing shared" in run("npas-plan", "budget=dense").out


def test_the_table_shows_layers_counts_and_flops(run: Run) -> None:
    answer = run("npas-plan")
    assert answer.code == 0 and not answer.err
    for word in ("stem.weight", "asked 0.1", "allowed", "used", "FLOPs", "whatever the budget"):
        assert word in answer.out


def test_a_sweep_of_plans_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    answer = run("npas-plan", "-m", "budget=0.1,0.2", "format=json")
    assert answer.code == 0
    asked = [json.loads(line)["budget"]["asked"] for line in answer.out.splitlines()]
    assert asked == ["0.1", "0.2"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["real", "synthetic"])
def test_the_flops_of_a_rehearsals_smaller_inputs_are_named(run: Run, source: str) -> None:
    arguments = ("npas-plan", "+exp=resnet50_imagenet", f"data.source={source}")
    said = "inputs: 3x64x64 of a synthetic run; the set's are 3x224x224"
    assert (said in run(*arguments).out) == (source == "synthetic")
