"""A result file is complete, true to its schema, and never half written."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from npas.reporting import results
from npas.reporting.results import (
    Dataset,
    Divergence,
    Init,
    Metrics,
    Parallel,
    Result,
    Search,
    Split,
)
from npas.sharing import BudgetReport
from npas.utils.git import Git

SEARCH = Search("learned", 8, epochs=2, steps=44, wall_s=3.5)
EARLIER = [{"steps": 5, "ranks": 1, "grad_accum_steps": 2}]
NAN = math.nan

# Fields of a run, and what of them is read back where it is not what was written.
KEPT = [
    (
        {"used": 100, "budget": BudgetReport("0.1", 1000, 100, 99), "split": Split(60, 9, 10, 20)},
        {},
    ),
    ({"metrics": Metrics({"accuracy": 97.5}, {"accuracy": 98.0}, "val accuracy")}, {}),
    ({"search": SEARCH, "init": Init("c0ffee", "taken over"), "hub": {"model.name": "a@b"}}, {}),
    (
        {"history": {"epoch": [1, 2, 4], "val/f1": [50.0, NAN, 75.5]}},
        {"history": {"epoch": [1, 2, 4], "val/f1": [50.0, None, 75.5]}},
    ),
    (
        {
            "status": "diverged",
            "metrics": Metrics({"accuracy": 10.0, "loss": NAN}),
            "divergence": Divergence(7, {"fc.weight": {"weight": 3.5, "gradient": math.inf}}),
            "error": "loss is nan",
        },
        {
            "metrics": Metrics({"accuracy": 10.0, "loss": None}),
            "divergence": Divergence(7, {"fc.weight": {"weight": 3.5, "gradient": None}}),
        },
    ),
    ({"parallel": Parallel(8, 2, 4, EARLIER)}, {}),
    ({"dataset": Dataset("cifar10", "real", False, {"test_batch": "c0ffee"})}, {}),
    ({"status": "failed", "budget": None, "split": None, "metrics": None, "error": "no disk"}, {}),
    ({"status": "preempted", "metrics": None, "steps": 5, "epochs": 0}, {}),
    ({"status": "preempted", "metrics": Metrics({})}, {}),
]


@pytest.mark.parametrize(("values", "read"), KEPT)
def test_what_is_written_is_read_back(make_result, tmp_path, values, read):
    result = make_result(**values)
    path = results.write(tmp_path / "run", result)
    assert path == tmp_path / "run" / "result.json"
    assert results.read(path) == results.read(path.parent) == dataclasses.replace(result, **read)


@pytest.mark.parametrize("field", results.ADDED)
def test_results_from_before_a_field_was_added_stay_valid(make_result, field):
    data = make_result(parallel=Parallel(1, 1, 1)).to_dict()
    of = next((key for key in ("dataset", "parallel", "split") if field in data[key]), None)
    del (data[of] if of else data)[field]
    found = results.from_dict(data)
    assert not getattr(getattr(found, of) if of else found, field)


WRONG = [
    ("status", "finished", "status must be one of done, diverged, failed, preempted"),
    ("seed", "0", "seed must be an integer, got '0'"),
    ("seed", True, "seed must be an integer, got True"),
    ("wall_s", None, "wall_s must be a finite number, got None"),
    ("config", [], "config must be a mapping"),
    ("versions.torch", 2, "versions.torch must be a string"),
    ("dataset.source", "fake", "dataset.source must be real or synthetic"),
    ("budget", None, "budget and split may be null only in a failed run"),
    ("budget.used", 1001, r"budget.used must be within budget.allowed \(1000\)"),
    ("split.bank", 1, r"split must add up to budget.used \(1000\)"),
    ("metrics.last", {}, "metrics must have numbers in a run that is done"),
    ("metrics.last.accuracy", None, "metrics must have numbers"),
    ("metrics", None, "metrics must have numbers in a run that is done"),
    ("parallel", {"ranks": 2, "nodes": 1}, "parallel.grad_accum_steps is missing"),
    ("colour", "red", "colour is not a field"),
    ("git.branch", "main", "git.branch is not a field"),
    ("history", {"epoch": [1], "f1": 1.0}, "history.f1 must be a list"),
]
NOT_THERE = object()
MISSING = [
    (field.name, NOT_THERE, f"{field.name} is missing")
    for field in dataclasses.fields(Result)
    if field.name not in results.ADDED
]


@pytest.mark.parametrize(("field", "value", "message"), [*WRONG, *MISSING])
def test_a_wrong_field_is_named_with_its_file(make_result, tmp_path, field, value, message):
    path = results.write(tmp_path, make_result())
    data = json.loads(path.read_text())
    *nodes, leaf = field.split(".")
    node = data
    for name in nodes:
        node = node[name]
    node[leaf] = value
    if value is NOT_THERE:
        del node[leaf]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        results.read(path)


def test_a_truncated_or_missing_file_is_named(tmp_path):
    path = tmp_path / "result.json"
    for text, message in (
        (None, "it cannot be read .No such file or directory."),
        ('{"status": "do', "not a JSON file"),
        ("[]", "it must be a mapping of keys"),
    ):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ValueError, match=f"^{path}: {message}"):
            results.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "finished"}, "status must be one of"),
        (
            {"metrics": Metrics({"accuracy": math.nan})},
            "metrics.last.accuracy must be a finite number",
        ),
        ({"config": {"lr": math.inf}}, "Out of range float values"),
        ({"config": {"path": Path("x")}}, "not JSON serializable"),
        ({"dataset": Dataset("digits", "fake")}, "dataset.source must be"),
    ],
)
def test_nothing_that_could_not_be_read_is_written(make_result, tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"^{tmp_path / 'result.json'}: .*{message}"):
        results.write(tmp_path, make_result(**changes))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file_and_no_other(make_result, tmp_path, monkeypatch):
    old = make_result(accuracy=90.0)
    path = results.write(tmp_path, old)

    def full_disk(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        results.write(tmp_path, make_result(accuracy=95.0))
    assert results.read(path) == old
    assert list(tmp_path.iterdir()) == [path]


def test_collect_finds_results_in_order_and_names_what_it_cannot_read(
    make_result, tmp_path, caplog
):
    for exp, folder in [("digits", "b"), ("digits", "a"), ("other", "c")]:
        results.write(tmp_path / exp / folder, make_result(exp=exp))
    broken = {"cut": '{"status": ', "deep": "[" * 10**5, "none": "{}", "bytes": "\udcff"}
    for name, text in broken.items():
        (tmp_path / "digits" / name).mkdir()
        path = tmp_path / "digits" / name / "result.json"
        path.write_text(text, errors="surrogateescape")
    (tmp_path / "digits" / "folder" / "result.json").mkdir(parents=True)
    assert [path.parent.name for path in results.collect(tmp_path, "digits")] == ["a", "b"]
    assert len(caplog.messages) == len(broken) + 1
    for name in [*broken, "folder"]:
        (line,) = [line for line in caplog.messages if f"/digits/{name}/result.json" in line]
        assert "\n" not in line
    assert len(results.collect(tmp_path)) == 3
    assert results.collect(tmp_path / "nowhere") == {}


def test_a_run_that_was_killed_and_resumed_may_differ_in_times_memory_and_host_alone(make_result):
    straight = make_result(search=SEARCH, created_at="2026-12-31T00:00:00+00:00")
    excluded = {"resume": "runs/x", "trainer": {"device": "cuda"}, "wandb": {"tags": []}}
    killed = dataclasses.replace(
        straight,
        wall_s=75.0,
        peak_memory_bytes=123,
        created_at="2027-01-01T00:00:00+00:00",
        versions={"torch": "2.16.0"},
        git=Git(None, None),
        search=dataclasses.replace(SEARCH, wall_s=9.5),
        config={"seed": 0, **excluded},
        hardware=dataclasses.replace(straight.hardware, gpu="a GPU", gpus=1),
    )
    assert results.same(straight, killed) == []
    data = straight.to_dict()
    for path in results.VARYING:  # what may differ are fields that there are
        node, _, leaf = path.rpartition(".")
        assert path.startswith("config.") or leaf in (data[node] if node else data), path


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"status": "preempted", "steps": 9}, ["status", "steps"]),
        ({"metrics": Metrics({"accuracy": 97.00000001})}, ["metrics.last.accuracy"]),
        ({"metrics": Metrics({"accuracy": 97.0, "f1": 1.0})}, ["metrics.last.f1"]),
        ({"config": {"seed": 0, "optim": {"lr": 0.2}}}, ["config.optim.lr"]),
        ({"config": {"seed": 0, "wandbs": 1}}, ["config.wandbs"]),
        ({"history": {"epoch": [1]}}, ["history", "history.epoch"]),
        ({"exp": "other"}, ["exp"]),
    ],
)
def test_other_differences_are_listed_by_field(make_result, changes, differing):
    one, other = make_result(), make_result(**changes)
    assert results.same(one, other) == results.same(other, one) == differing
