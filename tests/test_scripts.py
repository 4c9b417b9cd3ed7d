"""The benchmark scripts measure what they claim and record versions and hardware."""

import itertools
import json
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_squad_ddp as bench  # noqa: E402
import second_way  # noqa: E402
import split_budget  # noqa: E402
import write_keys  # noqa: E402


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Return a function that runs a script with these words, and returns what it wrote."""

    def run(script, *words):
        path, out = str(SCRIPTS / f"{script}.py"), tmp_path / f"{script}.json"
        if "ddp" in script:  # whose processes must import it
            subprocess.run([sys.executable, path, *words, "--out", out], check=True, timeout=300)
        else:
            monkeypatch.setattr(sys, "argv", [script, *words, "--out", str(out)])
            runpy.run_path(path, run_name="__main__")
        found = json.loads(out.read_text())
        assert {"versions", "hardware"} <= found.keys()
        return found

    return run


def test_the_page_of_keys_is_what_the_dataclasses_say():
    text = write_keys.page()
    assert write_keys.PAGE.read_text(encoding="utf-8") == text
    for row in (
        "`optim.lr` | number | 0.1 |",
        "`model.depth` |",
        "`task.folder` | text | images |",
    ):
        assert row in text


def test_a_budget_is_split_by_trials(monkeypatch, tmp_path, capsys):
    words = ["+exp=digits", "sharing.groups=type", "budget=0.2"]

    def loss(overrides, weights):  # least where linear layers get a quarter of the weight
        tried.append(weights)
        return 1 + abs(math.log2(4 * weights["linear"]))

    for trials, found in ((2, 1), (3, 0.5), (9, 0.25)):
        with monkeypatch.context() as patched:
            patched.setattr(split_budget, "trial", loss)
            tried = []
            best, lowest = split_budget.search(words, trials)
        assert best == {"conv2d": 1, "linear": found} and lowest == loss([], best)
        assert len(tried) <= trials + 1  # this line's own call among them
    assert split_budget.main([*words[:1], "budget=0.2"]) == 2
    assert "there is one group, all: set sharing.groups" in capsys.readouterr().err
    assert split_budget.main([*words[1:], "bogus=1"]) == 2
    assert "unknown key 'bogus'" in capsys.readouterr().err
    short = ["epochs=1", "model.depth=10", "model.width=0.25", f"run_root={tmp_path}"]
    assert split_budget.main(["--trials", "2", *words, *short, "wandb.mode=disabled"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("best: sharing.group_weights=")
    assert sum("(conv2d " in line for line in lines) == 2


def test_input_pipelines(measured):
    words = "--images 6 --batch 2 --workers 0,1 --rounds 1 --seconds 0 --networks wrn_digits"
    found = measured("bench_input", *words.split(), "--only", "imagenet,digits,networks")
    assert [row["row"] for row in found["rows"]] == [
        *(f"imagenet {form}, {n} workers" for form in ("folder", "shards") for n in (0, 1)),
        "digits, resident",
        "step wrn_digits",
    ]
    assert all(row["low"] <= row["samples_s"] <= row["high"] for row in found["rows"])
    assert found["settings"]["images"] == 6


@pytest.mark.slow
def test_a_bank_leaves_with_the_last_gradient_and_is_as_small_as_its_budget(measured):
    words = "--rounds 1 --batch 2 --budgets 0.1 --bucket-mb 0.2"
    dense, single, stages = measured("bench_ddp", *words.split())["rows"]
    assert [row["groups"] for row in (dense, single, stages)] == ["", "single", "stages"]
    for row in (dense, single, stages):
        assert row["gradient_bytes"] == 4 * row["parameters"]
        assert 0 <= row["ready_by_half"] <= row["ready_by_nine_tenths"] <= 1
        assert row["alone_s"] > 0 and row["fp32_ratio"] > 0 and row["bf16_ratio"] > 0
    assert single["parameters"] <= dense["parameters"] / 10
    assert single["ready_at_the_end"] > 0.9 and dense["ready_by_half"] > 0.5


@pytest.mark.slow
def test_both_networks_send_four_bytes_a_parameter(measured):
    words = "--rounds 1 --length 16 --words model=bert_tiny budget=200K"
    dense, shared = measured("bench_squad_ddp", *words.split())["rows"]
    assert (dense["network"], shared["network"]) == ("dense", "shared")
    for row in (dense, shared):
        assert row["sent_bytes"] == 4 * row["parameters"]
        assert row["alone_s"][0] > 0 and row["sending_s"][0] > 0 and row["all_reduce_s"][0] > 0
    assert shared["parameters"] <= 200_000 < dense["parameters"]


def test_a_step_of_squad_is_what_the_formula_says():
    assert bench.text_flops(1) == 6 * 12 * 24 * 1024**2 + 12 * 24 * 1024
    assert bench.text_flops(384) == pytest.approx(0.74e12, rel=0.01)
    cluster = bench.Cluster(gpus=2, flops=1e12, memory=1e12, generation_bytes=3, update_bytes=10)
    compute = 4 * bench.text_flops(384) / 1e12
    dense, shared = bench.DENSE, bench.SHARED
    update, sent = dense * 10 / 1e12, dense * 4 / 1e8
    steps = [bench.step_s(cluster, *case) for case in ((False, 4, 1e8), (True, 4, 1e8))]
    generated = dense * 3 / 1e12 + shared * 10 / 1e12 + shared * 4 / 1e8
    assert steps == pytest.approx([compute + update + sent - compute * 2 / 3, compute + generated])
    cluster = bench.Cluster()
    by_texts = [bench.ratio(cluster, texts, 12.5e9) for texts in bench.TEXTS]
    by_network = [bench.ratio(cluster, 4, bandwidth) for bandwidth in bench.BANDWIDTHS]
    for ratios in (by_texts, by_network):
        assert all(a > b - 0.06 for a, b in itertools.pairwise(ratios))
        assert ratios[0] > 5 and ratios[-1] < 1.2
    assert len(bench.table(cluster).splitlines()) == 2 + len(bench.BANDWIDTHS)
    found = bench.bandwidth_for(cluster, 8, 1.4)
    assert found is not None and bench.ratio(cluster, 8, found) == pytest.approx(1.4)
    assert bench.bandwidth_for(cluster, 8, 100) is None


def test_the_table_of_starts_has_a_line_a_method_with_means_over_the_seeds():
    rows = [
        {
            "method": method,
            "seed": seed,
            "metrics": {"f1": 10.0 * n + seed},
            "parameters": 200_000,
            "error": 0.5 + seed if method == "fitted" else None,
        }
        for seed in range(3)
        for n, method in enumerate(("from scratch", "fitted"))
    ]
    assert second_way.table("f1", rows).splitlines()[2:] == [
        "| from scratch | 200,000 | 1.00 ± 1.00 (n=3) |  |",
        "| fitted | 200,000 | 11.00 ± 1.00 (n=3) | 1.50 |",
    ]


@pytest.mark.slow
def test_the_table_and_plot_of_embeddings_come_from_the_committed_runs(monkeypatch, tmp_path):
    committed = SCRIPTS.parent / "results/minilm"
    shutil.copytree(committed, tmp_path / "minilm", ignore=shutil.ignore_patterns("embeddings.*"))
    words = ["minilm_embeddings", "--table", "--out", str(tmp_path / "minilm")]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(SCRIPTS / "minilm_embeddings.py"), run_name="__main__")
    table = (committed / "embeddings.md").read_text(encoding="utf-8")
    assert (tmp_path / "minilm/embeddings.md").read_text(encoding="utf-8") == table
    for suffix in (".png", ".svg"):
        drawn = (tmp_path / "minilm/embeddings").with_suffix(suffix)
        assert drawn.stat().st_size > 10_000 and (committed / drawn.name).is_file()
    monkeypatch.setattr(sys, "argv", words[:1])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPTS / "minilm_embeddings.py"), run_name="__main__")


def test_every_method_starts_as_it_should(measured):
    words = "--pre digits --fine digits --metric accuracy --seeds 1 --fine-words batch_size=128"
    small = "--words model.depth=10 model.width=0.5 epochs=1 optim.milestones=[] budget=0.5"
    methods = ",".join(second_way.METHODS)
    found = measured("second_way", *words.split(), "--methods", methods, *small.split())
    started = {row["method"]: row["started"] for row in found["rows"]}
    assert list(started) == list(second_way.METHODS)
    assert not started["from scratch"] and not started["dense from scratch"]
    assert "taken over as trained" in started["bank taken over"]
    assert "fitted, relative error" in started["fitted"]
    assert "tensors copied" in started["dense pre-trained"]
    errors = {row["method"]: row["error"] for row in found["rows"]}
    assert 0 < errors.pop("fitted") < 1 and not any(errors.values())
