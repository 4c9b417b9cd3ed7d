"""npas-plan says what would be allocated, exactly, and reads data only where it is asked to."""

import json
from pathlib import Path

import pytest
from cifar_files import write_cifar
from command_line import SMALL
from torch import nn

import npas
from npas.cli.plan import _notes


def plan(run, *arguments):
    return dict(json.loads(run("npas-plan", "format=json", *arguments, code=0).out))


@pytest.mark.parametrize(
    ("exp", "budget"), [("digits", "0.1"), ("digits", "1.5"), ("wrn_cifar100", "0.01")]
)
def test_a_plan_keeps_its_budget_and_is_one_object_of_known_keys(exp, budget, run, tmp_path):
    found = plan(run, f"+exp={exp}", f"budget={budget}")
    assert set(found) == {"budget", "split", "groups", "layers", "flops", "input_shape", "artifact"}
    counts = found["budget"]
    assert set(counts) == {"asked", "dense", "allowed", "used", "utilization"}
    assert counts["asked"] == budget
    assert counts["allowed"] == int(float(budget) * counts["dense"])
    slack = counts["allowed"] - counts["used"]
    assert 0 <= slack <= max(0.001 * counts["allowed"], len(found["layers"]))
    assert sum(found["split"].values()) == counts["used"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_flops_do_not_change_with_the_budget_nor_the_form_of_a_dense_plan(run):
    dense, shared = plan(run, "+exp=wrn_cifar10", "budget=dense"), plan(run, "+exp=wrn_cifar10")
    # WRN-28-10 has about 5.2 G multiply-adds an image (Zagoruyko & Komodakis, 2016).
    assert 2 * 5.1e9 < dense["flops"] == shared["flops"] < 2 * 5.4e9
    assert set(dense) == set(shared)
    counts = dense["budget"]
    assert counts["used"] == counts["allowed"] == counts["dense"] == 36_479_194
    assert dense["split"]["unshared"] == 36_479_194 and counts["asked"] == "dense"
    assert dense["layers"] == dense["groups"] == []
    assert "nothing shared" in run("npas-plan", "budget=dense").out


def test_the_table_shows_layers_counts_and_flops(run):
    answer = run("npas-plan")
    assert answer.code == 0 and not answer.err
    for word in ("stem.weight", "asked 0.1", "allowed", "used", "FLOPs", "for any budget"):
        assert word in answer.out
    assert "data " not in answer.out


@pytest.mark.slow
def test_a_plan_that_is_known_to_be_poor_is_said_to_be(run):
    overrides = ("npas-plan", "+exp=wrn_cifar10", "model.width=2", "budget=0.1")
    note = "6 of 29 layers have the same weight as another (stages.2.0.conv2.weight = stages.2."
    assert f"note: {note}" in run(*overrides).out
    for better in ("sharing.low_rank=1", "sharing.generator=hash", "sharing.upsample_templates=2"):
        assert "note:" not in run(*overrides, better).out
    assert "note:" not in run("npas-plan", "budget=dense").out
    text = ("npas-plan", "+exp=shakespeare", "budget=0.25")
    note = "note: tokens.weight reads templates: on text it did better"
    for overrides in ([], ["sharing.groups=type"]):
        assert note in run(*text, *overrides).out
    assert "note:" not in run(*text, "sharing.generator=hash").out
    assert "note:" not in run(*text, "sharing=no_embeddings").out
    many = run("npas-plan", "+exp=shakespeare", "budget=2", "sharing=legendre").out
    assert "mixes 8 templates in 4 layers by legendre coefficients: on text" in many
    assert "reads templates" not in run("npas-plan", "+exp=tiny_mlm").out  # too many to stay out
    assert "note: sharing.init=foo does not exist yet" in run("npas-plan", "sharing.init=foo").out


def test_a_fit_is_not_told_to_leave_embeddings_out():
    made = [nn.Embedding(16, 8), *(nn.Linear(64, 64) for _ in range(3))]
    for options, is_poor in (({"generator": "wavg"}, True), ({"init": "fit"}, False)):
        found = _notes(npas.plan(nn.Sequential(*made), 0.5, **options))
        assert any("reads templates" in note for note in found) == is_poor


def test_the_data_are_counted_and_one_batch_is_made(run, tmp_path):
    out = run("npas-plan", "check_data=true", code=0).out
    assert [line for line in out.splitlines() if line.startswith("data ")] == [
        "data source: real",
        "data train: 1,438 images of 10 classes, 139 to 146 of each",
        "data test: 359 images of 10 classes, 35 to 37 of each",
        "data batch: inputs 64x1x8x8 float32",
    ]
    assert plan(run, "check_data=true")["data"]["batch"] == "inputs 64x1x8x8 float32"
    assert not list(tmp_path.iterdir())


def test_a_copy_is_counted_and_refused_unless_asked_for(run, tmp_path):
    root = tmp_path / "data"
    made = write_cifar(root, 10, 40, 20)
    arguments = ("+exp=wrn_cifar10", *SMALL, "data.val_fraction=0", f"data.root={root}")
    answer = run("npas-plan", *arguments, "batch_size=20", "check_data=true")
    assert answer.code == 2 and "data.verify=warn to use it as it is" in answer.err
    assert f"test_batch: md5 {made.test_list[0][1]}; published: md5 40351d" in answer.out
    assert "data test: 20 images of 10 classes" in answer.out
    assert run("npas-train", *arguments, "batch_size=20").code == 2 and not Path("runs").exists()
