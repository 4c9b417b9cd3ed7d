"""A run's config.yaml can be started from, as it is or edited."""

import re
import shutil
from pathlib import Path

import pytest

from npas.cli import train
from npas.cli.app import Job
from npas.config import run_dir


@pytest.fixture
def asked(monkeypatch):
    """Note the configs that npas-train would run, and run none."""
    configs = []

    def run(config):
        configs.append(config)
        return Job(str(run_dir(config)))

    monkeypatch.setattr(train, "run", run)
    return configs


@pytest.fixture
def folder(trained):
    """Return a copy of a finished run's folder, below another root, from where it is called."""
    return Path(shutil.copytree(trained, f"moved/{trained.parent.name}/{trained.name}"))


def edit(folder, key, value):
    file = folder / "config.yaml"
    text, count = re.subn(rf"(?m)^( *{key}:).*$", rf"\1 {value}", file.read_text())
    assert count == 1
    file.write_text(text)


@pytest.mark.parametrize("name", ["", "/config.yaml"])
def test_a_run_starts_from_its_config_in_its_folder(run, folder, asked, name):
    answer = run("npas-train", f"run={folder}{name}", "trainer.log_every=3")
    assert (answer.code, answer.err) == (0, "")
    assert run_dir(asked[0]) == folder and asked[0].trainer.log_every == 3
    answer = run("npas-plan", f"run={folder}", "format=json", "check_data=true", "seed=3")
    assert answer.code == 0 and answer.out.startswith("{"), answer.err


def test_an_edited_config_is_a_run_of_its_own_and_one_line_says_so(run, folder, asked):
    edit(folder, "lr", "0.05")
    answer = run("npas-train", f"run={folder}")
    assert asked[0].optim.lr == 0.05 and run_dir(asked[0]).parent == folder.parent
    note = f"run={folder}: with these settings it is another run: {run_dir(asked[0])}"
    assert answer.err == f"npas-train: {note}\n"
    sweep = run("npas-train", "-m", f"run={folder}", "seed=1,2")
    assert sweep.code == 0, sweep.err
    assert [(config.seed, config.optim.lr) for config in asked[1:]] == [(1, 0.05), (2, 0.05)]


@pytest.mark.parametrize("name", ["moved/digits/renamed", "elsewhere"])
@pytest.mark.slow
def test_a_renamed_run_does_not_begin_again(run, folder, asked, name):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    own = folder.rename(name)
    answer = run("npas-train", f"run={own}", refused=f"run={own} was moved or renamed")
    assert not asked and f"add resume={own}" in answer.err
    for arguments in ((f"resume={own}",), ("force=true",), ("seed=5",), ("run_root=there",)):
        assert run("npas-train", f"run={own}", *arguments).code == 0, arguments
    run("npas-plan", f"run={own}", code=0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("lr: -1", "optim.lr must be above 0, got -1.0"),
        ("lr: 0.1\n  lrr: 1", "unknown key 'optim.lrr': did you mean 'optim.lr'?"),
        ("lr: [1", "is not a valid config"),
        ("run=nowhere", "nowhere cannot be read (No such file or directory): name a run's folder"),
        ("run=moved", "moved/config.yaml cannot be read"),
        ("run=list.yaml", "list.yaml must be a mapping of keys"),
        ("run=empty.yaml", "empty.yaml must be a mapping of keys"),
        ("run=FOLDER/result.json", "result.json: name the run's folder, or its config.yaml"),
        ("run=FOLDER/checkpoints/step-1", "name the run's folder, FOLDER (resume= takes a"),
        ("run=FOLDER optim=adam_simnet", "optim=adam_simnet cannot be combined with run="),
        ("run=FOLDER +exp=digits", "+exp=digits cannot be combined with run="),
        ("run=FOLDER model.depht=3", "run=FOLDER: unknown key 'model.depht': did you mean"),
        ("run=FOLDER pruning.amount={*:2}", "pruning.amount.* must be below 1, got 2.0"),
        ("run=FOLDER optim.muon={lr:0.2}", "npas-train: optim.muon={lr:0.2} cannot be combined"),
        ("run=FOLDER ~seed", "~seed cannot be combined with run="),
    ],
)
def test_invalid_configs_to_start_from(run, folder, asked, arguments, line):
    """A stored config is checked as any."""
    Path("list.yaml").write_text("- 1\n")
    Path("empty.yaml").touch()
    (folder / "result.json").write_text("{}")
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    if arguments.startswith("lr: "):
        edit(folder, "lr", arguments.removeprefix("lr: "))
        arguments = "run=FOLDER"
    arguments = arguments.replace("FOLDER", str(folder)).split()
    run("npas-train", *arguments, refused=line.replace("FOLDER", str(folder)))
    assert not asked
