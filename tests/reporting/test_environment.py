"""A result says what it ran on, wherever npas is installed."""

import subprocess
from pathlib import Path

import pytest

from npas.reporting.environment import Git, environment, git_state, versions


def commit(folder: Path) -> str:
    run = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*run, *arguments], check=True)
    done = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "npas").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "npas" / "code.py").write_text("a = 1\n")
    (tmp_path / "results" / "README.md").write_text("results\n")
    return tmp_path


def test_the_environment_fits_a_result_file() -> None:
    found = environment()
    assert set(found) == {"versions", "git", "hardware"}
    assert found["hardware"].cores >= 1
    assert found["hardware"].threads == 1  # as tests/conftest.py sets it
    assert found["hardware"].cpu


def test_versions_name_what_can_change_a_result() -> None:
    assert {"python", "npas", "torch", "torchvision", "numpy"} <= set(versions())


def test_git_names_the_commit_and_whether_the_code_was_changed(checkout: Path) -> None:
    sha = commit(checkout)
    package = checkout / "npas"
    assert git_state(package) == Git(sha, False)
    (checkout / "results" / "README.md").write_text("one more result\n")
    (checkout / "notes.txt").write_text("untracked\n")
    assert git_state(package) == Git(sha, False)
    (package / "code.py").write_text("a = 2\n")
    assert git_state(package) == Git(sha, True)


def test_no_commit_is_made_up(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = checkout / "npas"
    assert git_state(package) == Git(None, None)  # no repository
    subprocess.run(["git", "-C", str(checkout), "init", "-q"], check=True)
    assert git_state(package) == Git(None, None)  # no commit yet
    commit(checkout)
    installed = checkout / "env" / "site-packages" / "npas"
    installed.mkdir(parents=True)
    assert git_state(installed) == Git(None, None)  # somebody else's repository
    monkeypatch.setenv("PATH", "")
    assert git_state(package) == Git(None, None)  # no git
