"""The help of a command fits a screen and shows how it is called; a shell completes its keys."""

import errno
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from command_line import COMMANDS
from omegaconf import OmegaConf

from npas import cli


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_fits_a_screen_and_has_two_examples(run, command):
    answer = run(command, "--help")
    lines = answer.out.rstrip().splitlines()
    assert (answer.code, answer.err) == (0, "")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert "Exit code 0: done" in answer.out
    examples = [line for line in lines if re.match(f"  {command}( |$)", line) and "[" not in line]
    assert len(examples) >= 2


@pytest.mark.parametrize("command", ["npas-train", "npas-plan"])
def test_what_the_help_says_of_defaults_is_so_and_its_examples_compose(run, command):
    lines = run(command, "--help").out.splitlines()
    config = OmegaConf.create(run(command, "--cfg", "job").out)
    start = next(
        i for i, line in enumerate(lines) if re.search("common keys|of its own", line, re.I)
    )
    text = " ".join(lines[start + 1 : lines.index("", start)])
    pairs = dict(word.split("=") for word in text.split() if "=" in word)
    assert len(pairs) >= 2
    for key, value in pairs.items():
        assert str(OmegaConf.select(config, key)).lower() == value, key
    for line in lines[lines.index("Examples:") + 1 : start - 1]:
        arguments = [word.split(",")[0] for word in shlex.split(line)[1:] if word != "-m"]
        assert run(command, *arguments, "--cfg", "job").code == 0, line


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("npas-train budg", {"budget="}),
        ("npas-train +exp=shortest", {"+exp=shortest_paths", "+exp=shortest_paths_small"}),
        ("npas-plan form", {"format="}),
    ],
)
def test_a_shell_completes_keys_and_names(run, monkeypatch, line, completions):
    command = line.split()[0]
    assert "complete" in run(command, "--shell-completion", "install=bash").out
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert set(run(command, "--shell-completion", "query=bash").out.split()) == completions


@pytest.mark.slow
def test_each_command_is_a_module_that_runs(monkeypatch, capsys):
    for path in sorted(Path(cli.__path__[0]).glob("*.py")):
        if "__main__" in path.read_text():
            monkeypatch.setattr(sys, "argv", [path.stem, "--help"])
            with pytest.raises(SystemExit) as stopped:
                runpy.run_path(str(path), run_name="__main__")
            assert not stopped.value.code and "npas-" in capsys.readouterr().out, path


@pytest.mark.parametrize(
    "line",
    ["npas-plan", "npas-plan format=json", "npas-eval --help", "npas-train --cfg=job",
     "npas-table", "npas-table digits", "npas-runs", "npas-runs --help", "npas-plan --info"],
)  # fmt: skip
def test_a_reader_that_has_seen_enough_is_no_error(run, monkeypatch, line):
    """As `| head` is."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    command, *arguments = line.split()
    Path("runs").mkdir()
    monkeypatch.setattr("sys.stdout", Closed())
    answer = run(command, *arguments)
    assert answer.code == 0 and not answer.err
