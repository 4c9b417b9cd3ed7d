"""npas-train with groups to be found: one command does both stages, the others know the run."""

import contextlib
import dataclasses
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import SMALL, Run

from npas.cli import train
from npas.config import Config, run_dir
from npas.reporting import results
from npas.reporting.compose import compose
from npas.tasks.cifar import task as cifar
from npas.training import grouping
from npas.training.checkpoint import find_checkpoint

FIND = ("npas-train", *SMALL, "budget=0.3", "sharing.groups=learned", "sharing.num_groups=3")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a network with found groups once, and return its run's folder."""
    root = tmp_path_factory.mktemp("found") / "runs"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([*FIND[1:], f"run_root={root}"]) == 0
    (folder,) = root.glob("digits/budget-*")
    (root / "printed").write_text(printed.getvalue())
    return folder


def test_one_command_leaves_groups_their_picture_and_the_result(found: Path) -> None:
    names = {path.name for path in found.iterdir()}
    assert {"groups.json", "groups.png", "groups.svg", "result.json", "search"} < names
    result = results.read(found)
    assert result.status == "done" and result.budget is not None
    assert result.budget.used <= result.budget.allowed
    assert result.search is not None and result.search.wall_s > 0
    search = (result.search.method, result.search.num_groups, result.search.steps)
    assert search == ("learned", 3, 5)
    assert result.steps == 5  # its own alone


def test_it_says_that_it_searches_and_then_what_it_found(run: Run, found: Path) -> None:
    root = found.parent.parent
    printed = (root / "printed").read_text()
    first, *rest = printed.splitlines()
    assert first.startswith("searching 3 groups for 1 epochs: one group of 11 layers, 4 templates")
    assert "learned0" in printed and rest[-1].startswith("done: asked 0.3")
    assert run(*FIND, f"run_root={root}").out.startswith("skipped: asked 0.3")


def test_a_missing_matplotlib_is_one_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npas.reporting.plots.available", lambda: False)
    answer = run(*FIND)
    assert answer.code == 0
    assert answer.err.count("\n") == 1 and "for want of matplotlib" in answer.err
    assert not list(Path().glob("runs/*/*/groups.png"))


def test_the_run_evaluates_and_exports(run: Run, found: Path) -> None:
    answer = run("npas-eval", f"run={found}", "format=json", "device=cpu")
    assert answer.code == 0, answer.err
    metrics = results.read(found).metrics
    assert metrics is not None and json.loads(answer.out) == metrics.last
    (newest,) = found.glob("checkpoints/step-*")
    assert run("npas-eval", f"run={newest}").code == 0
    assert run("npas-export", f"run={found}", "out=net.safetensors").code == 0
    assert Path("net.safetensors").exists()


def test_the_search_itself_is_no_run(run: Run, found: Path, tmp_path: Path) -> None:
    answer = run("npas-eval", f"run={found / 'search'}")
    assert answer.code == 2 and "is the search for a run's groups" in answer.err
    half = tmp_path / "half"
    shutil.copytree(found / "search", half / "search")
    answer = run("npas-eval", f"run={half}")
    assert answer.code == 2 and "is still searching for its groups" in answer.err


def test_a_plan_is_of_the_groups_that_the_run_found(run: Run, found: Path) -> None:
    arguments = [word for word in FIND[1:] if not word.startswith("wandb")]
    answer = run("npas-plan", *arguments)
    assert answer.code == 2
    assert "has none yet: run npas-train with the same arguments first, or plan with" in answer.err
    answer = run("npas-plan", *arguments, f"run_root={found.parent.parent}")
    assert answer.code == 0, answer.err
    assert "learned0" in answer.out and "asked 0.3" in answer.out


def given(path: Path) -> Config:
    return compose(*SMALL, "budget=0.3", f"sharing.groups={path}")


def test_another_run_takes_the_groups_by_content(run: Run, found: Path, tmp_path: Path) -> None:
    file = tmp_path / "copied.json"
    shutil.copy(found / "groups.json", file)
    mapping = {e["name"]: e["group"] for e in json.loads(file.read_text())["layers"]}
    (tmp_path / "plain.json").write_text(json.dumps(mapping))
    folders = {
        run_dir(given(path))
        for path in (found, found / "groups.json", file, tmp_path / "plain.json")
    }
    (folder,) = folders  # one run, whatever the path
    assert run("npas-train", *SMALL, "budget=0.3", f"sharing.groups={found}").code == 0
    result = results.read(folder)
    assert result.search is None and result.config["sharing"]["groups"] == mapping
    assert "skipped" in run("npas-train", *SMALL, "budget=0.3", f"sharing.groups={file}").out
    other = tmp_path / "other.json"
    other.write_text(json.dumps(mapping | {next(iter(mapping)): "another"}))
    assert run_dir(given(other)) != folder


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ("{}", "it maps no layers to groups"),
        ('{"a": null}', "it maps 'a' to None, which is no group"),
    ],
)
def test_a_file_without_groups_is_one_clear_line(run: Run, content: str | None, says: str) -> None:
    if content is not None:
        Path("groups").mkdir()
        Path("groups/mine.json").write_text(content)
    answer = run("npas-train", *SMALL, "sharing.groups=groups/mine.json")
    assert answer.code == 2 and says in answer.err and answer.err.count("\n") == 1
    assert "name a run that found groups, or a JSON file" in answer.err


def test_groups_of_a_smaller_network_leave_layers_out_and_say_so(run: Run, found: Path) -> None:
    arguments = ("npas-plan", f"sharing.groups={found}", "budget=0.9", "model.width=0.5")
    assert not run(*arguments, "model.depth=10").err
    answer = run(*arguments, "model.depth=16")
    assert answer.code == 0
    assert "sharing.groups leaves 6 of 17 shareable layers unshared (stages.0.1" in answer.err


@pytest.mark.parametrize("command", ["npas-train", "npas-plan"])
def test_a_root_that_is_a_file_is_one_clear_line(run: Run, command: str) -> None:
    Path("file").touch()
    answer = run(command, "sharing=learned", "run_root=file")
    assert answer.code == 2 and "Errno" not in answer.err and answer.err.count("\n") == 1


def test_a_run_without_groups_says_so(run: Run, trained: Path) -> None:
    answer = run("npas-train", *SMALL, f"sharing.groups={trained}")
    assert answer.code == 2 and "name a run that found groups" in answer.err


def test_a_damaged_file_in_the_run_says_what_to_do(
    run: Run, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npas.reporting.plots.available", lambda: False)  # it takes time
    root = tmp_path / "copy"
    folder = Path(shutil.copytree(found.parent.parent, root)) / "digits" / found.name
    (folder / "result.json").unlink()
    (folder / "groups.json").write_text("{")
    answer = run(*FIND, f"run_root={root}")
    assert answer.code == 2 and "groups.json is damaged" in answer.err
    (folder / "groups.json").unlink()
    answer = run(*FIND, f"run_root={root}")
    assert answer.code == 0 and "searching" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sharing.groups=learned",), "needs to know how many: set sharing.num_groups"),
        (
            ("sharing=learned", "budget=null", "sharing.templates=2"),
            "sharing.groups=learned finds others: set a budget in place of templates",
        ),
        (("sharing=learned", "sharing.generator=avg"), "avg has none: choose wavg or emb"),
        (("sharing=learned", "sharing.num_groups=99"), "num_groups=99 is out of range"),
        (
            ("sharing=learned", "sharing.search.epochs=1e12"),
            "search.epochs must be at most 1000000",
        ),
        (("sharing=learned", "sharing.search.templates=1"), "search.templates must be at least 2"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    run: Run, arguments: tuple[str, ...], says: str
) -> None:
    answer = run("npas-train", *SMALL, *arguments)
    assert answer.code == 2 and says in answer.err
    assert not Path("runs").exists()


def test_a_dense_run_searches_nothing_and_says_so(run: Run) -> None:
    answer = run("npas-train", *SMALL, "budget=dense", "sharing=learned")
    assert answer.code == 0
    ignored = "sharing.groups and sharing.num_groups ignored: budget=dense shares nothing"
    assert ignored in answer.err and "searching" not in answer.out


@pytest.mark.slow
def test_the_cifar_experiment_learns_eight_groups_and_resumes_across_the_boundary(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real network (WRN-28-10), two steps a stage, on files in CIFAR's format."""
    root = tmp_path / "data"
    monkeypatch.setattr(cifar, "published_archive", write_synthetic(root))
    arguments = (
        "npas-train", "+exp=wrn_cifar100", "sharing.groups=learned", "sharing.num_groups=8",
        "budget=0.1", f"data.root={root}", "data.val_fraction=0", "data.download=false", "epochs=1",
        "batch_size=8", "optim.milestones=[]", "wandb.mode=disabled", "trainer.device=cpu",
        "deterministic=true",
    )  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(grouping, "write", interrupt)
        answer = run(*arguments)
    assert answer.code == 130 and "the same command resumes" in answer.err
    resumed = run(*arguments)
    assert resumed.code == 0, resumed.err
    straight = run(*arguments, "run_root=straight")
    assert straight.code == 0, straight.err

    (one,), (other,) = Path("runs").glob("*/budget-*"), Path("straight").glob("*/budget-*")
    ours, theirs = (json.loads((folder / "groups.json").read_text()) for folder in (one, other))
    assert ours["layers"] == theirs["layers"] and len(ours["layers"]) == 29
    assert len({layer["group"] for layer in ours["layers"]}) == 8
    a, b = (results.read(folder) for folder in (one, other))
    assert a.metrics == b.metrics and a.search is not None
    for folder in (one, other):
        assert run("npas-eval", f"run={folder}", f"data.root={root}").code == 0
    tensors = [newest(folder) for folder in (one, other)]
    assert all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def newest(folder: Path) -> dict[str, torch.Tensor]:
    return find_checkpoint(folder).tensors("model")


def write_synthetic(root: Path) -> Callable[[int], cifar.Archive]:
    """Write sixteen random images in CIFAR-100's format; return what lists them, unsummed."""
    published = cifar.published_archive(100)
    files = [*published.train, *published.test]
    (root / published.folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in files:
        images = rng.integers(0, 255, (16, 3072), dtype=np.uint8)
        batch = {"data": images, "fine_labels": list(range(16))}
        (root / published.folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    train, test = ({name: None for name in part} for part in (published.train, published.test))
    return lambda classes: dataclasses.replace(published, train=train, test=test)
