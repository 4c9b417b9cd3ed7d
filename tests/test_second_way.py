"""The measurement of pre-trained starts trains what it says, and its table has all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "second_way.py"
sys.path.insert(0, str(SCRIPT.parent))

import second_way  # noqa: E402


def test_the_table_has_a_line_a_method_with_means_over_the_seeds() -> None:
    rows = [
        {
            "method": method,
            "seed": seed,
            "metrics": {"f1": 10.0 * n + seed},
            "parameters": 200_000,
            "error": 0.5 + seed if method == "projected" else None,
        }
        for seed in range(3)
        for n, method in enumerate(("from scratch", "projected"))
    ]
    assert second_way.table("f1", rows).splitlines()[2:] == [
        "| from scratch | 200,000 | 1.00 ± 1.00 (n=3) |  |",
        "| projected | 200,000 | 11.00 ± 1.00 (n=3) | 1.50 |",
    ]


@pytest.mark.slow
def test_every_method_starts_as_it_should(tmp_path: Path) -> None:
    out = tmp_path / "second.json"
    small = ["model.depth=10", "model.width=0.5", "epochs=1", "optim.milestones=[]"]
    words = ["--pre", "digits", "--fine", "digits", "--metric", "accuracy", "--seeds", "1"]
    words += ["--methods", ",".join(second_way.METHODS), "--words", *small, "budget=0.5"]
    words += ["--fine-words", "batch_size=128"]
    command = [sys.executable, str(SCRIPT), *words, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    started = {row["method"]: row["started"] for row in found["rows"]}
    assert list(started) == list(second_way.METHODS)
    assert not started["from scratch"] and not started["dense from scratch"]
    assert "taken over as trained" in started["bank taken over"]
    assert "layers projected" in started["projected"]
    assert "tensors copied" in started["dense pre-trained"]
    errors = {row["method"]: row["error"] for row in found["rows"]}
    assert 0 < errors.pop("projected") < 1 and not any(errors.values())
    assert "hardware" in found and "versions" in found
