"""The benchmark of what BERT sends measures what it says, and its reckoning is the formula's."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_squad_ddp.py"
sys.path.insert(0, str(SCRIPT.parent))

import bench_squad_ddp as bench  # noqa: E402


def test_operations_are_six_a_weight_and_token_and_those_of_attention() -> None:
    assert bench.text_flops(1) == 6 * 12 * 24 * 1024**2 + 12 * 24 * 1024
    assert bench.text_flops(384) == pytest.approx(0.74e12, rel=0.01)


def test_a_step_is_what_the_formula_says() -> None:
    cluster = bench.Cluster(gpus=2, flops=1e12, memory=1e12, generation_bytes=3, update_bytes=10)
    compute = 4 * bench.text_flops(384) / 1e12
    dense, shared = bench.DENSE, bench.SHARED
    update = dense * 10 / 1e12
    sent = dense * 4 * 1.0 / 1e8
    assert bench.step_s(cluster, False, 4, 1e8) == pytest.approx(
        compute + update + sent - compute * 2 / 3
    )
    assert bench.step_s(cluster, False, 4, 1e9) == pytest.approx(
        compute + update + dense * 4 / 1e9 * 31_782_912 / dense
    )
    assert bench.step_s(cluster, True, 4, 1e8) == pytest.approx(
        compute + dense * 3 / 1e12 + shared * 10 / 1e12 + shared * 4 / 1e8
    )


def test_the_gain_falls_with_more_texts_and_with_a_faster_network() -> None:
    cluster = bench.Cluster()
    by_texts = [bench.ratio(cluster, texts, 12.5e9) for texts in bench.TEXTS]
    by_network = [bench.ratio(cluster, 4, bandwidth) for bandwidth in bench.BANDWIDTHS]
    assert by_texts[0] > 5 and by_network[0] > 5
    for ratios in (by_texts, by_network):
        assert all(a > b - 0.06 for a, b in itertools.pairwise(ratios))
        assert ratios[-1] < 1.2
    assert len(bench.table(cluster).splitlines()) == 2 + len(bench.BANDWIDTHS)


def test_the_bandwidth_that_a_gain_needs_is_found() -> None:
    cluster = bench.Cluster()
    for texts in (2, 8, 32):
        found = bench.bandwidth_for(cluster, texts, 1.4)
        assert found is not None
        assert bench.ratio(cluster, texts, found) == pytest.approx(1.4)
    assert bench.bandwidth_for(cluster, 8, 100) is None


@pytest.mark.slow
def test_both_networks_send_four_bytes_a_parameter(tmp_path: Path) -> None:
    out = tmp_path / "ddp.json"
    words = ["--rounds", "1", "--length", "16", "--words", "model=bert_tiny", "budget=200K"]
    command = [sys.executable, str(SCRIPT), *words, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(out.read_text())
    dense, shared = found["rows"]
    assert (dense["network"], shared["network"]) == ("dense", "shared")
    for row in (dense, shared):
        assert row["sent_bytes"] == 4 * row["parameters"]
        assert row["alone_s"][0] > 0 and row["sending_s"][0] > 0 and row["all_reduce_s"][0] > 0
    assert shared["parameters"] <= 200_000 < dense["parameters"]
    assert "hardware" in found and "versions" in found
    assert ended.stdout.count("\n") == 7
