"""W&B is told all that there is to tell, and can never stop, hold up or change a training."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from npas.training import tracking
from npas.training.tracking import Tracker


@pytest.fixture(autouse=True)
def mode_from_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)


class FakeWandb:
    """Takes what W&B takes, as its package and as its run, and fails or hangs where told to."""

    def __init__(self) -> None:
        self.fails: str | None = None
        self.error: BaseException = RuntimeError("server\nis gone")
        self.hangs: str | None = None
        self.free = threading.Event()  # of what hangs
        self.calls: list[dict[str, Any]] = []  # arguments of init
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[Any, ...]] = []
        self.figures: dict[str, Any] = {}
        self.artifacts: list[SimpleNamespace] = []
        self.preempting = False
        self.exit_codes: list[int] = []

    def act(self, what: str) -> None:
        if self.hangs == what:
            self.free.wait(20)
        if self.fails == what:
            raise self.error

    def init(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        self.act("init")
        offline, summary = arguments["mode"] == "offline", SimpleNamespace(update=self.summarize)
        return SimpleNamespace(
            id=arguments["id"],
            offline=offline,
            url=None if offline else "http://server/run",
            summary=summary,
            define_metric=self.define_metric,
            log=self.log,
            log_artifact=self.log_artifact,
            mark_preempting=self.mark_preempting,
            finish=self.finish,
        )

    def define_metric(self, *names: str, **options: str) -> None:
        self.act("define_metric")
        self.metrics.append((*names, options))

    def log(self, record: dict[str, Any]) -> None:
        self.act("log")
        self.logged.append(record)

    def summarize(self, figures: dict[str, Any]) -> None:
        self.act("summary")
        self.figures |= figures

    def log_artifact(self, artifact: Any) -> Any:
        self.act("upload")
        self.artifacts.append(artifact)
        return SimpleNamespace(wait=lambda timeout: self.act("wait"))

    def mark_preempting(self) -> None:
        self.act("mark_preempting")
        self.preempting = True

    def finish(self, exit_code: int) -> None:
        self.act("finish")
        self.exit_codes.append(exit_code)


class FakeArtifact(SimpleNamespace):
    def __init__(self, name: str, type: str) -> None:
        super().__init__(name=name, type=type, files=[])

    def add_file(self, path: str, policy: str) -> None:
        self.files.append(Path(path).name)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """Stand in for the wandb package."""
    fake, module = FakeWandb(), ModuleType("wandb")
    module.init = fake.init  # type: ignore[attr-defined]
    module.setup = lambda settings: None  # type: ignore[attr-defined]
    module.Settings = SimpleNamespace  # type: ignore[attr-defined]
    module.Artifact = FakeArtifact  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    yield fake
    fake.free.set()
    for thread in threading.enumerate():
        if thread.name == "wandb":
            thread.join(20)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_process_that_does_not_lead_counts_lines_and_writes_nothing(
    small, tmp_path: Path, wandb: FakeWandb
) -> None:
    config, run_dir = small(wandb={"mode": "online", "artifacts": True}), tmp_path / "run"
    with Tracker(config, run_dir, 3, "abcd1234", is_main=False) as tracker:
        tracker.log({"step": 1})
        tracker.log_similarity(1, 1, [])
        tracker.summarize({"last": {"accuracy": 98.0}})
        tracker.upload(tmp_path)
        tracker.ended("preempted")
        assert (tracker.lines, tracker.wandb_id) == (5, "abcd1234")
    assert wandb.calls == [] and not run_dir.exists()


def online(small, **settings: Any) -> Any:
    return small(wandb={"mode": "online", **settings})


def test_disabled_leaves_no_trace_and_does_not_even_import_wandb(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    with Tracker(small(wandb={"mode": "disabled"}), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
        tracker.ended("done")
        assert tracker.wandb_id is None
    assert not caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_without_wandb_installed_training_goes_on(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker(small(wandb={"mode": "offline"}), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
    assert "going on without wandb" in caplog.text
    assert lines(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_run_is_described(small, tmp_path: Path, wandb: FakeWandb, mode: str) -> None:
    config = small(wandb={"mode": mode, "tags": ["a"], "project": "p", "entity": "e"})
    facts = {"ranks": 2, "git": {"commit": "0123abc", "dirty": False}}
    with Tracker(config, tmp_path, 0, None, facts=facts) as tracker:
        tracker.log({"step": 3, "train/loss": 1.0})
        metrics = {"last": {"accuracy": 98.0, "val/accuracy": 97.0}, "selected": None}
        tracker.summarize({**metrics, "selected_on": None})
        tracker.ended("done")
    (call,) = wandb.calls
    described = {
        "mode": mode,
        "project": "p",
        "entity": "e",
        "group": "small",
        "job_type": "train",
        "name": tmp_path.name,
        "tags": ["a"],
        "dir": tmp_path,
        "resume": "allow",
    }
    assert described.items() <= call.items()
    assert type(call["config"]) is dict and type(call["config"]["optim"]) is dict
    assert call["config"]["facts"] == facts
    assert call["settings"].git_commit == "0123abc"
    assert call["id"] == tracker.wandb_id
    assert wandb.metrics == [("*", {"step_metric": "step"})]
    assert wandb.logged == [{"step": 3, "train/loss": 1.0}]
    assert wandb.figures == {"last/accuracy": 98.0, "last/val/accuracy": 97.0, "status": "done"}
    assert wandb.exit_codes == [0]


def test_selected_figures_stand_beside_the_last(small, tmp_path: Path, wandb: FakeWandb) -> None:
    selected = {"selected": {"accuracy": 98.5}, "selected_on": "val accuracy"}
    with Tracker(online(small), tmp_path, 0, None) as tracker:
        tracker.summarize({"last": {"accuracy": 98.0}, **selected})
    assert wandb.figures == {
        "last/accuracy": 98.0,
        "selected/accuracy": 98.5,
        "selected_on": "val accuracy",
    }


def test_a_search_is_tracked_under_names_of_its_own_in_the_same_run(
    small, tmp_path: Path, wandb: FakeWandb
) -> None:
    sharing = {"groups": "learned", "num_groups": 2}
    config = small(budget="0.3", sharing=sharing, wandb={"mode": "online"})
    with Tracker(config, tmp_path, 0, None, stage="search") as tracker:
        tracker.log({"step": 3, "train/loss": 1.0})
        tracker.ended("done")
    assert wandb.logged == [{"search/step": 3, "search/train/loss": 1.0}]
    assert wandb.figures == {"search/status": "done"}
    assert ("search/*", {"step_metric": "search/step"}) in wandb.metrics
    with Tracker(config, tmp_path, 0, None) as tracker:
        pass
    assert wandb.calls[0]["id"] == wandb.calls[1]["id"] == tracker.wandb_id


def test_the_id_is_kept_before_anything_is_trained_and_found_again(
    small, tmp_path: Path, wandb: FakeWandb
) -> None:
    first = Tracker(online(small), tmp_path, 0, None)
    assert (tmp_path / "wandb_id").read_text() == f"{first.wandb_id}\n"  # and then it is killed
    with Tracker(online(small), tmp_path, 0, None) as again:
        assert again.wandb_id == first.wandb_id
    with Tracker(online(small), tmp_path, 5, "abcd1234"):  # as a checkpoint has it
        pass
    assert (tmp_path / "wandb_id").read_text() == "abcd1234\n"
    assert [call["id"] for call in wandb.calls] == [first.wandb_id, first.wandb_id, "abcd1234"]
    (tmp_path / "wandb_id").unlink()
    with Tracker(online(small), tmp_path, 0, None) as fresh:
        assert fresh.wandb_id not in (first.wandb_id, "abcd1234")
    first.__exit__(None, None, None)


@pytest.mark.parametrize("stored", [b"", b"\xff\xfe", b"../../x\n", b"a\nb\n"])
def test_a_stored_id_that_is_none_is_replaced(
    small, tmp_path: Path, wandb: FakeWandb, stored: bytes
) -> None:
    (tmp_path / "wandb_id").write_bytes(stored)
    with Tracker(online(small), tmp_path, 0, None) as tracker:
        assert (tmp_path / "wandb_id").read_text() == f"{tracker.wandb_id}\n"


def test_the_environment_can_switch_it_off(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker(online(small), tmp_path, 0, None):
        pass
    assert wandb.calls == []


@pytest.mark.parametrize(
    ("status", "exit_code"), [("done", 0), ("diverged", 1), ("failed", 1), ("preempted", 1)]
)
def test_wandb_is_told_how_the_run_ended(
    small, tmp_path: Path, wandb: FakeWandb, status: str, exit_code: int
) -> None:
    with Tracker(online(small), tmp_path, 0, None) as tracker:
        tracker.ended(status)
    assert wandb.figures == {"status": status}
    assert wandb.exit_codes == [exit_code]
    assert wandb.preempting == (status == "preempted")


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_a_run_that_breaks_off_is_marked_as_failed(
    small, tmp_path: Path, wandb: FakeWandb, error: type[BaseException]
) -> None:
    with pytest.raises(error), Tracker(online(small), tmp_path, 0, None):
        raise error
    assert wandb.exit_codes == [1]


@pytest.mark.parametrize("asked", [True, False])
def test_the_last_weights_are_uploaded_if_asked_for(
    small, tmp_path: Path, wandb: FakeWandb, asked: bool
) -> None:
    checkpoint = tmp_path / "step-00000010"
    checkpoint.mkdir()
    for name in ("model", "averaged", "optimizer"):
        (checkpoint / f"{name}.safetensors").touch()
    with Tracker(online(small, artifacts=asked), tmp_path, 0, "abcd1234") as tracker:
        tracker.upload(checkpoint)
        tracker.ended("done")
    if asked:
        (artifact,) = wandb.artifacts
        assert (artifact.name, artifact.type) == ("model-abcd1234", "model")
        assert artifact.files == ["model.safetensors", "averaged.safetensors"]
    else:
        assert wandb.artifacts == []


CALLS = ["init", "define_metric", "log", "summary", "upload", "wait", "mark_preempting", "finish"]


class Wordless(BaseException):
    """Not even an Exception."""


def use_all(config: Any, run_dir: Path) -> None:
    with Tracker(config, run_dir, 0, None) as tracker:
        tracker.log({"step": 1})
        tracker.log({"step": 2})
        tracker.summarize({"last": {"accuracy": 98.0}})
        tracker.upload(run_dir)
        tracker.ended("preempted")
    assert [line["step"] for line in lines(run_dir)] == [1, 2]


@pytest.mark.parametrize("fails", CALLS)
@pytest.mark.parametrize(
    "error",
    [RuntimeError("server\nis gone"), OSError(28, "full"), SystemExit(1), Wordless()],
    ids=repr,
)
def test_whatever_it_raises_is_one_warning_of_one_line(
    small,
    tmp_path: Path,
    wandb: FakeWandb,
    caplog: pytest.LogCaptureFixture,
    fails: str,
    error: BaseException,
) -> None:
    wandb.fails, wandb.error = fails, error
    caplog.set_level(logging.WARNING)
    use_all(online(small, artifacts=True), tmp_path)
    (record,) = caplog.records
    assert "\n" not in record.getMessage() and not record.getMessage().endswith(": ")
    # What had begun is ended all the same.
    assert wandb.exit_codes == ([] if fails in ("init", "finish") else [1])


@pytest.mark.parametrize("hangs", CALLS)
def test_however_long_it_takes_is_one_warning(
    small,
    tmp_path: Path,
    wandb: FakeWandb,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    hangs: str,
) -> None:
    for limit in ("START_S", "FINISH_S", "UPLOAD_S", "PREEMPTED_S"):
        monkeypatch.setattr(tracking, limit, 0.1)
    wandb.hangs = hangs
    caplog.set_level(logging.WARNING)
    started = time.monotonic()
    use_all(online(small, artifacts=True), tmp_path)
    assert time.monotonic() - started < 5
    (record,) = caplog.records
    assert "wandb sync" in record.getMessage()


def test_a_server_that_answers_late_gets_all_that_was_logged_meanwhile(
    small, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "START_S", 0.1)
    wandb.hangs = "init"
    with Tracker(online(small), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
        assert wandb.logged == []
        wandb.free.set()
    assert wandb.logged == [{"step": 1}]


def test_logging_never_waits_for_wandb(small, tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.hangs = "log"
    with Tracker(online(small), tmp_path, 0, None) as tracker:
        for step in range(3):
            tracker.log({"step": step})
        assert len(lines(tmp_path)) == 3 and wandb.logged == []
        wandb.free.set()
    assert len(wandb.logged) == 3


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
