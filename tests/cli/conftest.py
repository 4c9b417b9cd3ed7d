"""Run commands as a user does, in this process."""

import pytest
from command_line import COMMANDS, SMALL, Answer

from npas.cli import train


@pytest.fixture
def run(capsys):
    """Return a function that runs a command line."""

    def run_command(*arguments):
        capsys.readouterr()
        code = COMMANDS[arguments[0]](arguments[1:])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train a small shared network once, and return its run's folder."""
    root = tmp_path_factory.mktemp("trained") / "runs"
    assert train.main([*SMALL, "budget=0.5", f"run_root={root}"]) == 0
    (folder,) = root.glob("digits/*")
    return folder
