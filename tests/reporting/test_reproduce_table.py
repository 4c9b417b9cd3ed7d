"""`make reproduce-table` runs what is missing, keeps it, and writes the table again."""

import importlib.util
import sys
from pathlib import Path

import pytest

from npas.reporting import definitions, results
from npas.reporting.tables import Row, Table

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce_table.py"
TABLE = Table(
    name="tiny",
    title="A title",
    rows=(
        Row("dense", ("+exp=digits", "budget=dense"), "dense"),
        Row("SSN", ("+exp=digits", "budget=0.1"), "SSN"),
        Row("theirs", None),
    ),
    note="A note.",
    seeds=(0, 1),
)
# Stands in for npas-train: notes its overrides, then copies the prepared result, if any, or fails.
TRAIN = """
import pathlib, shutil, sys
*overrides, run_root = sys.argv[1:]
with open("asked.txt", "a") as asked:
    print(*overrides, file=asked)
ready = pathlib.Path("ready") / "_".join(overrides)
if not ready.exists():
    sys.exit(1)
shutil.copytree(ready, run_root.removeprefix("run_root="), dirs_exist_ok=True)
"""


def load():
    specification = importlib.util.spec_from_file_location("reproduce_table", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.setattr(definitions, "table", {"tiny": TABLE}.__getitem__)
    (tmp_path / "train.py").write_text(TRAIN)
    return load()


@pytest.fixture
def prepare(keep):
    def prepare(budget, seed, **values):
        overrides = ("+exp=digits", f"budget={budget}")
        keep(Path("ready", "_".join((*overrides, f"seed={seed}"))), *overrides, seed=seed, **values)

    return prepare


def run(script, *options):
    command = f"--command={sys.executable} train.py"
    return script.main(["tiny", "--results=results", command, *options])


def asked():
    path = Path("asked.txt")
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_missing_runs_are_made_kept_and_tabled(script, prepare, capfd):
    for seed in (0, 1):
        prepare("dense", seed, accuracy=98.0)
        prepare("0.1", seed, accuracy=97.0, used=100)
    assert run(script) == 0
    assert len(asked()) == 4
    assert len(results.collect("results/runs", "digits")) == 4
    text = Path("results/tables/tiny.md").read_text()
    assert "| SSN | 100 | 97.00 ± 0.00 | 2 |" in text
    assert Path("results/tables/tiny.svg").exists()
    assert "[4/4] npas-train +exp=digits budget=0.1 seed=1" in capfd.readouterr().out

    assert run(script) == 0
    assert len(asked()) == 4  # nothing is missing any more
    assert "every result is there" in capfd.readouterr().out


def test_a_failure_does_not_stop_the_rest_and_is_reported(script, prepare, capfd):
    prepare("0.1", 1, accuracy=97.0, used=100)
    assert run(script) == 1
    assert len(asked()) == 4
    assert "exit code 1: npas-train +exp=digits budget=0.1 seed=0" in capfd.readouterr().err
    text = Path("results/tables/tiny.md").read_text()
    assert "97.00; `npas-train +exp=digits budget=0.1 seed=0`" in text


def test_a_diverged_run_is_kept_and_a_failed_one_is_not(script, prepare):
    prepare("0.1", 0, used=100, status="diverged")
    prepare("0.1", 1, used=100, status="failed")
    assert run(script) == 1
    assert [r.status for r in results.collect("results/runs").values()] == ["diverged"]


def test_runs_made_before_are_taken_in_without_training_and_replace_none(script, keep):
    keep(Path("results/runs"), "+exp=digits", "budget=dense", accuracy=98.0)
    for seed in (0, 1):
        keep(Path("runs"), "+exp=digits", "budget=dense", seed=seed, accuracy=50.0)
    assert run(script, "--write-only") == 0
    assert asked() == []
    found = results.collect("results/runs", "digits").values()
    assert [(r.seed, r.metrics.last["accuracy"]) for r in found if r.metrics] == [(0, 98), (1, 50)]


def test_an_estimate_runs_and_writes_nothing(script, keep, capfd):
    assert run(script, "--estimate") == 0
    message = "4 runs are missing; their experiments in configs/exp/ say how long"
    assert message in capfd.readouterr().out
    keep(Path("runs"), "+exp=digits", "budget=dense", wall_s=120.0)
    assert run(script, "--estimate") == 0
    out = capfd.readouterr().out
    assert "3 runs are missing, about 6 min at 120 s each" in out
    assert "  npas-train +exp=digits budget=dense seed=1\n" in out
    assert asked() == []
    assert not Path("results").exists()


def test_an_unknown_table_is_one_line(capfd):
    assert load().main(["digit"]) == 2
    message = "there is no table 'digit'; did you mean digits or digits_swrn?\n"
    assert capfd.readouterr().err == message
