"""npas-train with sharing.init: one line reports what was taken over; a run resumes without it."""

import json
import shutil

import pytest
from command_line import SMALL

from npas.config import run_dir
from npas.reporting import results
from npas.reporting.compose import compose

TRAIN = ("npas-train", *SMALL)


def test_a_run_starts_from_another_and_says_how(run, trained, tmp_path):
    arguments = (*TRAIN, f"run_root={tmp_path}", "budget=0.5", "seed=1", f"sharing.init={trained}")
    answer = run(*arguments, code=0)
    assert "npas-train: sharing.init: 1 bank of 11 layers taken over as trained; " in answer.err
    assert run(*arguments).out.startswith("skipped")
    (folder,) = tmp_path.glob("digits/*seed-1*")
    assert run_dir(compose(*arguments[1:-1], f"sharing.init={trained}/")) == folder
    assert results.read(folder).init.became.startswith("1 bank of 11 layers taken over")


def test_an_exported_network_is_fitted_and_a_dry_run_tells(run, trained, tmp_path):
    file = tmp_path / "network.safetensors"
    run("npas-export", f"run={trained}", f"out={file}", code=0)
    overrides = (*TRAIN, f"run_root={tmp_path}", "budget=0.2", "dry_run=true")
    answer = run(*overrides, f"sharing.init=fit:{file}", code=0)
    assert "fitted, relative error 0." in answer.err
    run(*overrides, f"sharing.init={file}", refused=f"set sharing.init=fit:{file}, which fits")


def test_a_fit_of_the_experiments_own_dense_run_is_evaluated_without_training(run, tmp_path):
    overrides = (*TRAIN, f"run_root={tmp_path}", "data.val_fraction=0.1")
    fits = (*overrides, "budget=0.9", "sharing.init=fit:dense", "eval_only=true")
    run(*fits, refused="budget=dense and all else equal")
    run(*overrides, "budget=dense", code=0)
    answer = run(*fits, code=0)
    assert "codebook 0 is read" not in answer.err and "(not trained)" in answer.out
    found = {path.name.split("_")[0]: results.read(path) for path in tmp_path.glob("digits/*")}
    dense, fitted = found["budget-dense"], found["budget-0.9"]
    assert (fitted.steps, fitted.epochs, fitted.status) == (0, 0, "done")
    assert fitted.metrics.last["accuracy"] == pytest.approx(dense.metrics.last["accuracy"], abs=0.6)
    assert fitted.metrics.selected == fitted.metrics.last
    (folder,) = tmp_path.glob("digits/budget-0.9*")
    answer = run("npas-eval", f"run={folder}", code=0)
    assert f"accuracy {fitted.metrics.last['accuracy']:.4f}" in answer.out and not answer.err
    assert run(*fits).out.startswith("skipped")


@pytest.mark.slow
def test_a_run_that_has_begun_needs_the_path_no_more(run, trained, tmp_path):
    path = shutil.copytree(trained, tmp_path / "before")
    arguments = (*TRAIN, f"run_root={tmp_path}", "budget=0.5", f"sharing.init={path}")
    run(*arguments, code=0)
    shutil.rmtree(path)
    (result,) = tmp_path.glob("digits/*/result.json")
    result.unlink()
    answer = run(*arguments)
    assert answer.code == 0 and "resuming from" in answer.err
    assert json.loads(result.read_text())["config"]["sharing"]["init"] == str(path)
    run(*arguments, "seed=5", refused="there is no such file or folder")


@pytest.mark.slow
def test_a_plan_says_how_near_a_fit_comes_and_a_run_starts_there(run, trained, tmp_path):
    overrides = (*SMALL, f"run_root={tmp_path}", "budget=0.5", f"sharing.init=fit:{trained}")
    for batches in (0, 2):
        arguments = (*overrides, f"sharing.fit_batches={batches}")
        answer = run("npas-plan", *arguments, code=0)
        (line,) = (line for line in answer.out.splitlines() if line.startswith("fit "))
        assert "relative error 0." in line and "from a codebook" in answer.out
        assert line.endswith(" of the outputs of a batch") == bool(batches)
    again = run("npas-plan", *arguments, "format=json")
    errors = json.loads(again.out)["errors"]
    assert f"relative error {errors['all']:.3g}" in line and len(errors["layers"]) == 11
    answer = run("npas-train", *arguments)
    assert answer.code == 0 and f"fitted, {line.removeprefix('fit').strip()}" in answer.err
    (folder,) = tmp_path.glob("digits/*")
    run("npas-eval", f"run={folder}", code=0)
    message = "there is no such file or folder"
    run("npas-plan", *SMALL, "budget=0.5", "sharing.init=fit:none", refused=message)
