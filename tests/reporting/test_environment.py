"""A result records what it ran on, wherever npas is installed."""

import subprocess

from npas.reporting.environment import environment
from npas.utils.git import Git, git_state


def test_the_environment_fits_a_result_file():
    found = environment()
    assert set(found) == {"versions", "git", "hardware"}
    assert found["hardware"].cores >= 1 and found["hardware"].cpu
    assert found["hardware"].threads == 1  # as tests/conftest.py sets it
    assert {"python", "npas", "torch", "torchvision", "numpy"} <= set(found["versions"])


def test_git_names_the_commit_and_whether_the_code_was_changed(tmp_path, monkeypatch):
    def git(*arguments):
        run = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run([*run, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    package, nothing = tmp_path / "npas", Git(None, None)
    for name in ("npas/code.py", "results/README.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("first\n")
    assert git_state(package) == nothing  # no repository
    git("init", "-q")
    assert git_state(package) == nothing  # no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    sha = git("rev-parse", "HEAD")
    (tmp_path / "results" / "README.md").write_text("one more result\n")
    (tmp_path / "notes.txt").write_text("untracked\n")
    assert git_state(package) == Git(sha, False)
    (package / "code.py").write_text("a = 2\n")
    assert git_state(package) == Git(sha, True)
    installed = tmp_path / "env" / "site-packages" / "npas"
    installed.mkdir(parents=True)
    assert git_state(installed) == nothing  # somebody else's repository
    monkeypatch.setenv("PATH", "")
    assert git_state(package) == nothing  # no git
