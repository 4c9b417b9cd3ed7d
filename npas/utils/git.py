"""The git commit of the running code."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Git:
    """A commit; both fields are None if npas does not run from a git checkout."""

    commit: str | None
    dirty: bool | None  # whether tracked files outside results/ differ from the commit


def git_state(package: Path = PACKAGE_FOLDER) -> Git:
    """Return the commit of the checkout that contains `package`, if any; never fails."""
    top = _git(package, "rev-parse", "--show-toplevel")
    # A package installed inside another project's checkout must not report that project's commit.
    if top is None or Path(top).resolve() != package.parent:
        return Git(None, None)
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    # New results do not change the code.
    changes = _git(
        package.parent, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"
    )
    return Git(commit, None if commit is None or changes is None else bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
