"""The sweep over public architectures: its list, what it checks, and the committed results."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RESULTS = SCRIPTS.parent / "results" / "zoo"
QUICK = ["transformers/MambaForCausalLM", "torchvision/squeezenet1_1"]


@pytest.fixture(scope="module")
def zoo():
    """Import the script by its path: another module of its name is beside this one."""
    spec = importlib.util.spec_from_file_location("zoo_script", SCRIPTS / "zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sweep_holds_all_of_torchvision_and_25_of_each_other_library(zoo):
    from torchvision import models

    names = [case.name for case in zoo.all_cases()]
    assert len(names) == len(set(names))
    of = {library: [n for n in names if n.startswith(f"{library}/")] for library in zoo.LIBRARIES}
    assert sorted(of["torchvision"]) == [
        f"torchvision/{name}" for name in models.list_models(module=models)
    ]
    assert len(of["timm"]) == len(of["transformers"]) == 25


@pytest.mark.parametrize("name", QUICK)
def test_a_few_architectures_pass(zoo, name):
    result = zoo.run(next(case for case in zoo.all_cases() if case.name == name))
    assert result["status"] == "passed", result
    for budget, found in result["budgets"].items():
        allowed = int(result["dense"] * float(budget.rstrip("%")) / 100)
        assert allowed - found["layers"] <= found["used"] <= allowed
        assert found["bank_gradient_nonzero"] > 0.9


def test_the_committed_results_are_whole_and_passed(zoo):
    for case in zoo.all_cases():
        result = json.loads((RESULTS / f"{case.name}.json").read_text())
        assert result["status"] == "passed", case.name
        assert set(result["budgets"]) == set(zoo.BUDGETS)
        for found in result["budgets"].values():
            assert found["used"] <= found["allowed"]
    page = (RESULTS / "README.md").read_text()
    assert page == zoo.table([zoo.read(RESULTS, case.name) for case in zoo.all_cases()])
