"""The log is complete without W&B, and W&B can never stop or change a training."""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from npas.training.tracking import Tracker


@pytest.fixture(autouse=True)
def mode_from_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)


class FakeRun:
    """Takes what W&B's run takes, and fails where it is told to."""

    def __init__(self, fails: str | None = None) -> None:
        self.fails = fails
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[Any, ...]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def define_metric(self, *names: str, **options: str) -> None:
        self.metrics.append((*names, options))

    def log(self, record: dict[str, Any]) -> None:
        if self.fails == "log":
            raise RuntimeError("server\nis gone")
        self.logged.append(record)

    def finish(self, exit_code: int) -> None:
        if self.fails == "finish":
            raise OSError("disk full")
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand in for the wandb package; `calls` are the arguments of its init."""
    fake = SimpleNamespace(run=FakeRun(), calls=[])

    def init(**arguments: Any) -> FakeRun:
        fake.calls.append(arguments)
        if fake.run.fails == "init":
            raise RuntimeError("no key")
        return fake.run

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return fake


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_one_line_a_record_there_at_once(small, tmp_path: Path) -> None:
    with Tracker(small(), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1, "train/loss": 0.5})
        assert lines(tmp_path) == [{"step": 1, "train/loss": 0.5}]


def test_what_is_no_number_is_null(small, tmp_path: Path) -> None:
    with Tracker(small(), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1, "a": float("nan"), "b": float("inf"), "c": "text"})
    assert lines(tmp_path) == [{"step": 1, "a": None, "b": None, "c": "text"}]


def test_going_on_drops_later_lines_and_half_lines(small, tmp_path: Path) -> None:
    log = "".join(f'{{"step": {n}}}\n' for n in (2, 4, 6, 8)) + '{"step": 9, "tra'
    (tmp_path / "log.jsonl").write_text(log)
    with Tracker(small(), tmp_path, 6, None) as tracker:
        tracker.log({"step": 7})
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 7]
    with Tracker(small(), tmp_path, 0, None):
        pass
    assert lines(tmp_path) == []


def test_a_searchs_lines_are_marked_and_stay_when_the_run_itself_begins(
    small, tmp_path: Path
) -> None:
    with Tracker(small(), tmp_path, 0, None, stage="search") as tracker:
        for step in (1, 2, 3):
            tracker.log({"step": step})
    with Tracker(small(), tmp_path, 2, None, stage="search") as tracker:
        tracker.log({"step": 3})
    search = [{"stage": "search", "step": step} for step in (1, 2, 3)]
    assert lines(tmp_path) == search
    with Tracker(small(), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
    assert lines(tmp_path) == [*search, {"step": 1}]
    with Tracker(small(), tmp_path, 0, None):
        pass
    assert lines(tmp_path) == search
    with Tracker(small(), tmp_path, 1, None, stage="search"):
        pass
    assert lines(tmp_path) == search[:1]


def test_a_search_is_tracked_under_names_of_its_own_in_the_same_run(
    small, tmp_path: Path, fake_wandb: SimpleNamespace
) -> None:
    sharing = {"groups": "learned", "num_groups": 2}
    config = small(budget="0.3", sharing=sharing, wandb={"mode": "online"})
    with Tracker(config, tmp_path, 0, "abcd1234", stage="search") as tracker:
        tracker.log({"step": 3, "train/loss": 1.0})
    assert fake_wandb.run.logged == [{"search/step": 3, "search/train/loss": 1.0}]
    assert ("search/*", {"step_metric": "search/step"}) in fake_wandb.run.metrics


def test_going_on_keeps_the_good_lines_of_a_damaged_log(small, tmp_path: Path) -> None:
    bad = [b'{"step": 2, "a": "\xc3', b"[1]", b"3", b"null", b'{"step": null}', b"{}", b"\x00"]
    log = b"\n".join([b'{"step": 1}', *bad, b'{"step": 3}'])  # the last line lacks its end
    (tmp_path / "log.jsonl").write_bytes(log)
    with Tracker(small(), tmp_path, 6, None) as tracker:
        tracker.log({"step": 7})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 7]


def test_disabled_does_not_even_import_wandb(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    with Tracker(small(wandb={"mode": "disabled"}), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
    assert not caplog.text


def test_without_wandb_installed_training_goes_on(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker(small(wandb={"mode": "offline"}), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
    assert "going on without wandb" in caplog.text
    assert lines(tmp_path) == [{"step": 1}]


def test_the_run_is_described(small, tmp_path: Path, fake_wandb: SimpleNamespace) -> None:
    config = small(wandb={"mode": "online", "tags": ["a"], "project": "p", "entity": "e"})
    with Tracker(config, tmp_path, 0, None) as tracker:
        tracker.log({"step": 3, "train/loss": 1.0})
        tracker.summarize({"accuracy": 98.0})
    (call,) = fake_wandb.calls
    described = {
        key: call[key] for key in ("mode", "project", "entity", "group", "job_type", "tags")
    }
    assert described == {
        "mode": "online",
        "project": "p",
        "entity": "e",
        "group": "small",
        "job_type": "train",
        "tags": ["a"],
    }
    assert type(call["config"]) is dict and type(call["config"]["optim"]) is dict
    assert call["id"] == tracker.wandb_id and call["resume"] == "allow"
    assert fake_wandb.run.metrics == [("*", {"step_metric": "step"})]
    assert fake_wandb.run.logged == [{"step": 3, "train/loss": 1.0}]
    assert fake_wandb.run.summary == {"accuracy": 98.0}
    assert fake_wandb.run.exit_code == 0


def test_a_resumed_run_keeps_its_id(small, tmp_path: Path, fake_wandb: SimpleNamespace) -> None:
    with Tracker(small(wandb={"mode": "online"}), tmp_path, 5, "abcd1234"):
        pass
    assert fake_wandb.calls[0]["id"] == "abcd1234"


def test_the_environment_can_switch_it_off(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: SimpleNamespace
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker(small(wandb={"mode": "online"}), tmp_path, 0, None):
        pass
    assert fake_wandb.calls == []


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_whatever_it_raises_is_one_warning(
    small, tmp_path: Path, fake_wandb: SimpleNamespace, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    fake_wandb.run.fails = fails
    caplog.set_level(logging.WARNING)
    with Tracker(small(wandb={"mode": "online"}), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
        tracker.log({"step": 2})
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_run_that_fails_is_marked_so(small, tmp_path: Path, fake_wandb: SimpleNamespace) -> None:
    with pytest.raises(KeyError), Tracker(small(wandb={"mode": "online"}), tmp_path, 0, None):
        raise KeyError
    assert fake_wandb.run.exit_code == 1


@pytest.mark.slow
def test_offline_needs_no_account_and_no_network(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with Tracker(small(wandb={"mode": "offline"}), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
    assert not caplog.text
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
