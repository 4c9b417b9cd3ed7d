"""A result file is complete, true to its schema, and never half written."""

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npas.reporting import results
from npas.reporting.results import Budget, Dataset, Metrics, Result, Search, Split

Make = Callable[..., Result]


def test_what_is_written_is_read_back_equal(make_result: Make, tmp_path: Path) -> None:
    result = make_result(
        used=100,
        budget=Budget("0.1", 1000, 100, 99, 0.99),
        split=Split(bank=60, coefficients=9, upsamplers=10, unshared=20),
        metrics=Metrics({"accuracy": 97.5}, {"accuracy": 98.0}, "val accuracy"),
    )
    path = results.write(tmp_path / "run", result)
    assert path == tmp_path / "run" / "result.json"
    assert results.read(path) == result
    assert results.read(tmp_path / "run") == result


def test_the_file_holds_every_promised_field(make_result: Make, tmp_path: Path) -> None:
    data = json.loads(results.write(tmp_path, make_result()).read_text())
    assert set(data) >= {
        "status", "exp", "config", "config_hash", "budget", "metrics", "seed", "steps", "epochs",
        "wall_s", "peak_memory_bytes", "split", "dataset", "versions", "git", "hardware",
        "created_at",
    }  # fmt: skip
    assert set(data["budget"]) == {"asked", "dense", "allowed", "used", "utilization"}
    assert set(data["split"]) == {"bank", "coefficients", "upsamplers", "unshared"}
    assert set(data["metrics"]) == {"last", "selected", "selected_on"}
    assert set(data["dataset"]) == {"name", "source"}
    assert set(data["git"]) == {"commit", "dirty"}


def test_a_search_is_recorded_and_results_from_before_there_was_one_stay_valid(
    make_result: Make, tmp_path: Path
) -> None:
    result = make_result(search=Search("learned", 8, epochs=2, steps=44, wall_s=3.5))
    path = results.write(tmp_path, result)
    data = json.loads(path.read_text())
    assert results.read(path) == result and data["search"]["steps"] == 44
    del data["search"]
    assert results.from_dict(data) == dataclasses.replace(result, search=None)
    with pytest.raises(ValueError, match=r"search\.steps is missing"):
        results.from_dict({**data, "search": {"method": "learned", "num_groups": 8, "epochs": 2}})


def test_a_history_is_recorded_column_by_column_with_null_for_nan(
    make_result: Make, tmp_path: Path
) -> None:
    history = {"epoch": [1, 2, 4], "val/f1": [50.0, math.nan, 75.5]}
    path = results.write(tmp_path, make_result(history=history))
    data = json.loads(path.read_text())
    assert data["history"] == {"epoch": [1, 2, 4], "val/f1": [50.0, None, 75.5]}
    assert results.read(path).history == data["history"]
    del data["history"]
    assert results.from_dict(data).history is None  # results from before there was one stay valid


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"val/f1": [1.0]}, "history.val/f1 must have a value for each of history.epoch .0."),
        ({"epoch": [1, 2], "val/f1": [1.0]}, "history.val/f1 must have a value for each .*2"),
        ({"epoch": [0, 1]}, "history.epoch must be epochs from 1 on that increase"),
        ({"epoch": [2, 2]}, "history.epoch must be epochs from 1 on that increase"),
        ({"epoch": [1.0]}, "history.epoch must be epochs from 1 on that increase"),
        ({"epoch": [1], "val/f1": ["high"]}, "history.val/f1 must hold finite numbers and null"),
        ({"epoch": [1], "val/f1": 1.0}, "history.val/f1 must be a list, not 1.0"),
    ],
)
def test_a_history_that_does_not_hold_together_is_named(
    make_result: Make, history: dict[str, Any], message: str
) -> None:
    data = {**make_result().to_dict(), "history": history}
    with pytest.raises(ValueError, match=message):
        results.from_dict(data)


def test_a_dense_run_asks_for_dense_and_uses_all_of_it() -> None:
    assert Budget.of_dense(42) == Budget("dense", 42, 42, 42, 1.0)


WRONG = [
    ("status", "finished", "status must be one of done, diverged, failed, preempted"),
    ("exp", "", "exp must not be empty"),
    ("seed", "0", "seed must be an integer, not '0'"),
    ("seed", True, "seed must be an integer, not True"),
    ("steps", -1, "steps must not be negative"),
    ("wall_s", None, "wall_s must be a number, not None"),
    ("created_at", "yesterday", "created_at must be an ISO 8601 time"),
    ("created_at", "2026-11-21T10:00:00", "created_at must be an ISO 8601 time with its zone"),
    ("config", [], "config must be a JSON object"),
    ("versions.torch", 2, "versions.torch must be a string"),
    ("dataset.source", "fake", "dataset.source must be real or standin"),
    ("budget", None, "budget may be null only in a failed run"),
    ("budget.used", 1001, r"budget.used must be within budget.allowed \(1000\), not 1001"),
    ("budget.used", 0, "budget.used must be within"),
    ("budget.utilization", 0.5, "budget.utilization must be used / allowed"),
    ("budget.dense", 2000, "budget.used must be budget.dense"),
    ("split.bank", 1, r"split must add up to budget.used \(1000\)"),
    ("metrics.last", {}, "metrics.last must not be empty"),
    ("metrics.last.accuracy", None, "metrics.last.accuracy may be null only"),
    ("metrics.selected_on", "val accuracy", "metrics.selected and metrics.selected_on must both"),
    ("colour", "red", "colour is not a field"),
    ("git.branch", "main", "git.branch is not a field"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_a_wrong_field_is_named_with_its_file(
    make_result: Make, tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = results.write(tmp_path, make_result())
    data = json.loads(path.read_text())
    *nodes, leaf = field.split(".")
    node = data
    for name in nodes:
        node = node[name]
    node[leaf] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        results.read(path)


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Result) if f.name not in results.ADDED]
)
def test_a_missing_field_is_named_with_its_file(
    make_result: Make, tmp_path: Path, field: str
) -> None:
    path = results.write(tmp_path, make_result())
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"^{path}: {field} is missing"):
        results.read(path)


def test_a_cut_off_or_absent_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match=f"^{path}: there is no such result file"):
        results.read(path)
    path.write_text('{"status": "do')
    with pytest.raises(ValueError, match=f"^{path}: not a JSON file"):
        results.read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=f"^{path}: the file must be a JSON object"):
        results.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "finished"}, "status must be one of"),
        ({"metrics": Metrics({"accuracy": math.nan})}, "metrics.last.accuracy must be finite"),
        ({"config": {"lr": math.inf}}, "Out of range float values"),
        ({"config": {"path": Path("x")}}, "not JSON serializable"),
        ({"dataset": Dataset("digits", "made up")}, "dataset.source must be"),
    ],
)
def test_nothing_that_could_not_be_read_is_written(
    make_result: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path / 'result.json'}: .*{message}"):
        results.write(tmp_path, make_result(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_run_keeps_its_result_with_null_for_nan(
    make_result: Make, tmp_path: Path
) -> None:
    metrics = Metrics({"accuracy": 10.0, "loss": math.nan})
    results.write(tmp_path, make_result(status="diverged", metrics=metrics, error="loss is nan"))
    read = results.read(tmp_path)
    assert read.metrics == Metrics({"accuracy": 10.0, "loss": None})
    assert read.error == "loss is nan"


def test_a_run_that_failed_early_needs_no_budget_or_metrics(
    make_result: Make, tmp_path: Path
) -> None:
    result = make_result(status="failed", budget=None, split=None, metrics=None, error="no disk")
    results.write(tmp_path, result)
    assert results.read(tmp_path) == result


def test_an_interrupted_write_leaves_the_old_file_and_no_other(
    make_result: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_result(accuracy=90.0)
    path = results.write(tmp_path, old)

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        results.write(tmp_path, make_result(accuracy=95.0))
    assert results.read(path) == old
    assert list(tmp_path.iterdir()) == [path]


def test_collect_finds_an_experiments_results_in_order(make_result: Make, tmp_path: Path) -> None:
    for exp, folder in [("digits", "b"), ("digits", "a"), ("other", "c")]:
        results.write(tmp_path / exp / folder, make_result(exp=exp))
    (tmp_path / "digits" / "unfinished").mkdir()
    assert [path.parent.name for path in results.collect(tmp_path, "digits")] == ["a", "b"]
    assert len(results.collect(tmp_path)) == 3
    assert results.collect(tmp_path / "nowhere") == {}
