"""The benchmark of several ranks measures what it says it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_ddp.py"


@pytest.mark.slow
def test_a_bank_leaves_with_the_last_gradient_and_is_as_small_as_its_budget(tmp_path: Path) -> None:
    out = tmp_path / "ddp.json"
    words = ["--rounds", "1", "--batch", "2", "--budgets", "0.1", "--bucket-mb", "0.2"]
    command = [sys.executable, str(SCRIPT), *words, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(out.read_text())
    dense, single, stages = found["rows"]
    assert [row["groups"] for row in (dense, single, stages)] == ["", "single", "stages"]
    for row in (dense, single, stages):
        assert row["gradient_bytes"] == 4 * row["parameters"]
        assert 0 <= row["ready_by_half"] <= row["ready_by_nine_tenths"] <= 1
        assert row["alone_s"] > 0 and row["fp32_ratio"] > 0 and row["bf16_ratio"] > 0
    assert single["parameters"] <= dense["parameters"] / 10
    assert single["ready_at_the_end"] > 0.9 and dense["ready_by_half"] > 0.5
    assert "hardware" in found and "versions" in found
    assert ended.stdout.count("\n") == 6  # two lines of titles, and what was measured
