"""The tested and the oldest versions are those that setup.cfg asks for."""

import configparser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints"


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
