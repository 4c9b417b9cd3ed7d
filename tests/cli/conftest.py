"""Run commands as a user does, in this process."""

import pytest
from command_line import COMMANDS, SMALL, Answer

from npas.cli import train


@pytest.fixture
def run(capsys):
    """Return a function that runs a command line.

    It asserts the exit `code`, if given; of arguments that are `refused`, that one line says this.
    """

    def run_command(*arguments, code=None, refused=None):
        capsys.readouterr()
        found = COMMANDS[arguments[0]](arguments[1:])
        answer = Answer(found, *capsys.readouterr())
        if refused is not None:
            assert refused in answer.err and answer.err.count("\n") == 1, answer.err
            code = 2
        assert code in (None, found), answer.err
        return answer

    return run_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train a small shared network once, and return its run's folder."""
    root = tmp_path_factory.mktemp("trained") / "runs"
    assert train.main([*SMALL, "budget=0.5", f"run_root={root}"]) == 0
    (folder,) = root.glob("digits/*")
    return folder
