"""The benchmark of the input pipelines measures each row and keeps what it was measured on."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_input.py"


def test_every_kind_of_row_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = "--images 6 --batch 2 --workers 0,1 --rounds 1 --seconds 0 --networks wrn_digits"
    words += f" --only imagenet,digits,networks --out {tmp_path / 'made' / 'input.json'}"
    monkeypatch.setattr(sys, "argv", ["bench_input.py", *words.split()])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = json.loads((tmp_path / "made" / "input.json").read_text())
    assert [row["row"] for row in found["rows"]] == [
        *(f"imagenet {form}, {n} workers" for form in ("folder", "shards") for n in (0, 1)),
        "digits, resident",
        "step wrn_digits",
    ]
    assert all(row["low"] <= row["samples_s"] <= row["high"] for row in found["rows"])
    assert found["settings"]["images"] == 6 and {"versions", "hardware"} <= found.keys()
    assert "samples/s" in capsys.readouterr().out
