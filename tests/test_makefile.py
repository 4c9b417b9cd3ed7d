"""`make install` takes the tested versions, and reports where it could not."""

import configparser
import os
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints"
# Stands for python, and for that of the environment it makes, whose pip refuses what REFUSED names.
PYTHON = """#!/bin/sh
case "$*" in
*"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"pip "*--editable*) case "$*" in *REFUSED*) echo refused >&2; exit 1 ;; esac ;;
esac
"""


def requirements(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def asked_for():
    """Return the direct requirements of setup.cfg and of its extras by name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    found = [Requirement(line) for text in texts for line in text.split("\n") if line]
    return {requirement.name: requirement for requirement in found if requirement.name != "npas"}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_one_tested_version_within_its_range(python):
    asked, pinned = asked_for(), {}
    for pin in requirements(CONSTRAINTS / "tested.txt"):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            (exact,) = pin.specifier
            assert exact.operator == "==" and pin.name not in pinned, pin
            assert exact.version in asked[pin.name].specifier, pin
            pinned[pin.name] = exact.version
    assert pinned.keys() == asked.keys()


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = {
        (name, part.version)
        for name, requirement in asked_for().items()
        for part in requirement.specifier
        if part.operator == ">="
    }
    oldest = requirements(CONSTRAINTS / "oldest.txt")
    assert {(pin.name, str(pin.specifier).removeprefix("==")) for pin in oldest} == bounds


@pytest.mark.parametrize(
    ("refused", "code", "said"),
    [
        ("nothing", 0, "Installed the versions of constraints/tested.txt."),
        ("--constraint", 0, "Not every version of constraints/tested.txt could be installed"),
        ("--editable", 2, ""),
    ],
)
def test_installing_falls_back_to_the_ranges_and_says_so(tmp_path, refused, code, said):
    python = tmp_path / "python"
    python.write_text(PYTHON.replace("REFUSED", refused))
    python.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", "-C", str(ROOT), "install", f"PYTHON={python}", f"VENV={venv}"]
    # The tests may themselves have been started by `make test CONSTRAINTS=...`.
    alone = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "CONSTRAINTS")}
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert (venv / ".ready").exists() == (code == 0)
    if code == 0:
        assert lines[-2].startswith(said)
        assert lines[-1].endswith(f"'. {venv}/bin/activate' puts them on the PATH.")
