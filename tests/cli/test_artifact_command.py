"""A budget in bytes from the plan to the artifact that is read back."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import SMALL

from npas.cli.recording import ARTIFACT_FILE
from npas.reporting import results


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Train a run with a budget in bytes, with averaged weights, once."""
    from npas.cli import train

    root = tmp_path_factory.mktemp("exported") / "runs"
    overrides = [*SMALL, "budget=12KB", "optim.ema_decay=0.5", f"run_root={root}"]
    assert train.main(overrides) == 0
    (folder,) = root.glob("digits/budget-12KB_seed-0_*")
    return folder


def test_a_run_with_a_budget_in_bytes_exports_at_its_end(run, exported):
    result = results.read(exported)
    found = result.artifact
    size = (exported / ARTIFACT_FILE).stat().st_size
    assert found.bytes == size < found.bytes_before_compression <= found.cap == 12_000
    assert (found.bits, found.scheme, found.compression) == (8, "rows", "zlib")
    assert result.budget.asked == "12KB" and result.budget.used > 6_000
    assert found.metrics.keys() == result.metrics.last.keys()
    assert found.metrics != result.metrics.last  # it was quantized

    overrides = ("npas-eval", f"run={exported}", "format=json", "device=cpu")
    answer = run(*overrides, f"artifact={exported / ARTIFACT_FILE}")
    assert json.loads(answer.out) == found.metrics
    assert json.loads(run(*overrides).out) == result.metrics.last


@pytest.mark.slow
def test_any_run_can_be_exported_as_an_artifact(run, trained, exported):
    answer = run("npas-export", f"run={trained}", "format=artifact", "bits=6", "out=small.npas")
    assert answer.code == 0, answer.err
    assert f"small.npas: {Path('small.npas').stat().st_size:,} bytes (int6, zlib;" in answer.out
    answer = run("npas-eval", f"run={trained}", "artifact=small.npas", "format=json")
    assert answer.code == 0 and json.loads(answer.out).keys() == {"accuracy", "loss"}

    folder = Path(shutil.copytree(exported, "copy"))
    run("npas-export", f"run={folder}", "format=artifact", code=0)
    own, again = folder / ARTIFACT_FILE, folder / "export" / ARTIFACT_FILE
    assert own.read_bytes() == again.read_bytes()
    message = "shares in another way: name its own run"
    run("npas-eval", f"run={folder}", "artifact=small.npas", refused=message)
    own.write_bytes(own.read_bytes()[:-1])
    run("npas-eval", f"run={folder}", f"artifact={own}", refused="is damaged")


@pytest.mark.slow
def test_an_artifact_over_its_budget_fails_and_keeps_what_was_trained(run):
    overrides = ("npas-train", *SMALL, "budget=12KB", "artifact.expected_ratio=3")
    answer = run(*overrides)
    assert answer.code == 1
    (line,) = [line for line in answer.err.splitlines() if "failed" in line]
    assert "more than the 12KB that it may: share with about budget=" in line
    assert "and expected_ratio=1." in line
    (folder,) = Path("runs/digits").iterdir()
    result = results.read(folder)
    assert result.status == "failed" and result.artifact is None
    assert result.metrics is not None and result.error is not None and result.error in line
    assert not (folder / ARTIFACT_FILE).exists()
    run("npas-eval", f"run={folder}", code=0)
    run("npas-export", f"run={folder}", "format=artifact", refused="more than the 12KB")
    assert run(*overrides).code == 1  # says it again, and trains nothing
    assert results.read(folder).steps == result.steps


@pytest.mark.parametrize("budget", ["dense", "8K", "12KB"])
def test_a_plan_says_the_bytes_of_every_budget(run, budget):
    overrides = ("npas-plan", *SMALL[:2], f"budget={budget}")
    found = json.loads(run(*overrides, "format=json").out)["artifact"]
    taken = found["bytes_before_compression"]
    assert found["cap"] == (12_000 if budget == "12KB" else None)
    line = f"artifact {taken:,} bytes before compression (int8, zlib)"
    assert line in run(*overrides).out
    six = json.loads(run(*overrides, "artifact.bits=6", "format=json").out)["artifact"]
    if budget == "8K":  # the dense network is too small to be quantized
        assert six["bytes_before_compression"] < taken
