"""npas-train with groups to be found: one command runs both stages; the others read the run."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
from command_line import SMALL

from npas.cli import train
from npas.config import run_dir
from npas.reporting import results
from npas.reporting.compose import compose

FIND = ("npas-train", *SMALL, "budget=0.3", "sharing.groups=learned", "sharing.num_groups=3")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Train a network with found groups once, and return its run's folder."""
    root = tmp_path_factory.mktemp("found") / "runs"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([*FIND[1:], f"run_root={root}"]) == 0
    (folder,) = root.glob("digits/budget-*")
    (root / "printed").write_text(printed.getvalue())
    return folder


@pytest.mark.slow
def test_one_command_searches_and_leaves_groups_their_picture_and_the_result(run, found):
    names = {path.name for path in found.iterdir()}
    assert {"groups.json", "groups.png", "groups.svg", "result.json", "search"} < names
    result = results.read(found)
    assert result.status == "done" and result.budget.used <= result.budget.allowed
    search = result.search
    assert (search.method, search.num_groups, search.steps) == ("learned", 3, 5)
    assert search.wall_s > 0 and result.steps == 5  # its own alone
    root = found.parent.parent
    printed = (root / "printed").read_text()
    first, *rest = printed.splitlines()
    assert first.startswith("searching 3 groups for 1 epochs: one group of 11 layers, 4 templates")
    assert "learned0" in printed and rest[-1].startswith("done: asked 0.3")
    assert run(*FIND, f"run_root={root}").out.startswith("skipped: asked 0.3")


@pytest.mark.slow
def test_the_run_evaluates_and_exports_but_not_its_search(run, found, tmp_path):
    answer = run("npas-eval", f"run={found}", "format=json", "device=cpu", code=0)
    assert json.loads(answer.out) == results.read(found).metrics.last
    (newest,) = found.glob("checkpoints/step-*")
    run("npas-export", f"run={newest}", "out=net.safetensors", code=0)
    assert Path("net.safetensors").exists()
    run("npas-eval", f"run={found / 'search'}", refused="is the search for a run's groups")
    half = tmp_path / "half"
    shutil.copytree(found / "search", half / "search")
    run("npas-eval", f"run={half}", refused="is still searching for its groups")


def test_a_plan_is_of_the_groups_that_the_run_found(run, found):
    arguments = [word for word in FIND[1:] if not word.startswith("wandb")]
    answer = run("npas-plan", *arguments)
    assert answer.code == 2
    assert "has none yet: run npas-train with the same arguments first, or plan with" in answer.err
    answer = run("npas-plan", *arguments, f"run_root={found.parent.parent}", code=0)
    assert "learned0" in answer.out and "asked 0.3" in answer.out


def given(path):
    return compose(*SMALL, "budget=0.3", f"sharing.groups={path}")


def test_another_run_takes_the_groups_by_content(run, found, tmp_path):
    file = tmp_path / "copied.json"
    shutil.copy(found / "groups.json", file)
    mapping = {e["name"]: e["group"] for e in json.loads(file.read_text())["layers"]}
    (tmp_path / "plain.json").write_text(json.dumps(mapping))
    folders = {
        run_dir(given(path))
        for path in (found, found / "groups.json", file, tmp_path / "plain.json")
    }
    (folder,) = folders  # one run, whatever the path
    run("npas-train", *SMALL, "budget=0.3", f"sharing.groups={found}", code=0)
    result = results.read(folder)
    assert result.search is None and result.config["sharing"]["groups"] == mapping
    assert "skipped" in run("npas-train", *SMALL, "budget=0.3", f"sharing.groups={file}").out
    other = tmp_path / "other.json"
    other.write_text(json.dumps(mapping | {next(iter(mapping)): "another"}))
    assert run_dir(given(other)) != folder


def test_a_damaged_file_in_the_run_says_what_to_do(run, found, tmp_path, monkeypatch):
    monkeypatch.setattr("npas.reporting.plots.available", lambda: False)  # it takes time
    root = tmp_path / "copy"
    folder = Path(shutil.copytree(found.parent.parent, root)) / "digits" / found.name
    (folder / "result.json").unlink()
    (folder / "groups.json").write_text("{")
    run(*FIND, f"run_root={root}", refused="groups.json is damaged")
    (folder / "groups.json").unlink()
    answer = run(*FIND, f"run_root={root}")
    assert answer.code == 0 and "searching" not in answer.out
