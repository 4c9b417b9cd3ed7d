"""The log is complete without W&B, whose failures never stop, delay or change a training."""

import json
import logging
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from npas.training import tracking
from npas.training.tracking import Tracker

CALLS = ["init", "define_metric", "log", "summary", "upload", "wait", "mark_preempting", "finish"]


class FakeWandb:
    """Takes what W&B takes, as its package and as its run, and fails or hangs where told to."""

    def __init__(self):
        self.fails = self.hangs = None
        self.error = RuntimeError()
        self.free = threading.Event()  # of what hangs
        self.seen = {call: [] for call in CALLS}  # what each call was given, once it was done

    def takes(self, call, answer=lambda given: None):
        def take(*given, **named):
            if self.hangs == call:
                self.free.wait(20)
            if self.fails == call:
                raise self.error
            self.seen[call].append(given[0] if given else named)
            return answer(named)

        return take

    def run(self, named):
        return SimpleNamespace(
            id=named["id"],
            offline=named["mode"] == "offline",
            url="http://server/run",
            summary=SimpleNamespace(update=self.takes("summary")),
            log_artifact=self.takes("upload", lambda _: SimpleNamespace(wait=self.takes("wait"))),
            **{name: self.takes(name) for name in CALLS if name not in ("summary", "upload")},
        )


class FakeArtifact:
    def __init__(self, name, type):
        self.files = []

    def add_file(self, path, policy):
        self.files.append(Path(path).name)


@pytest.fixture
def wandb(monkeypatch):
    """Stand in for the wandb package."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake, module = FakeWandb(), ModuleType("wandb")
    vars(module).update(init=fake.takes("init", fake.run), Artifact=FakeArtifact)
    vars(module).update(setup=lambda settings: None, Settings=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", module)
    yield fake
    fake.free.set()
    for thread in threading.enumerate():
        if thread.name == "wandb":
            thread.join(20)


@pytest.fixture
def online(small):
    return lambda **settings: small(wandb={"mode": "online", **settings})


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("logged", "steps"), [(0, []), (1, [2]), (3, [2, 4, 4]), (4, [2, 4, 4, 6]), (9, [2, 4, 4, 6])]
)
def test_going_on_keeps_as_many_lines_as_were_logged(small, tmp_path, logged, steps):
    # What was measured after an epoch has the step of the line before it.
    log = "".join(f'{{"step": {n}}}\n' for n in (2, 4, 4, 6)) + '{"step": 9, "tra'
    (tmp_path / "log.jsonl").write_text(log)
    with Tracker(small(), tmp_path, logged, None) as tracker:
        assert tracker.lines == len(steps)
        tracker.log({"step": 7})
    assert [line["step"] for line in lines(tmp_path)] == [*steps, 7]


@pytest.mark.parametrize("bad", [b'{"step": 2, "a": "\xc3', b"[1]", b'{"step": null}', b"\x00"])
def test_a_damaged_line_is_left_out_and_counts_as_logged(small, tmp_path, bad):
    log = [b'{"step": 1}', bad, b'{"step": 3}', b'{"step": 4}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(log))
    with Tracker(small(), tmp_path, 3, None) as tracker:
        assert tracker.lines == 2
        tracker.log({"step": 5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 5]


def test_a_process_that_does_not_lead_counts_lines_and_writes_nothing(online, tmp_path, wandb):
    run_dir = tmp_path / "run"
    with Tracker(online(artifacts=True), run_dir, 3, "abcd1234", is_main=False) as tracker:
        tracker.log({"step": 1})
        tracker.upload(tmp_path)
        tracker.ended("preempted")
        assert (tracker.lines, tracker.wandb_id) == (4, "abcd1234")
    assert wandb.seen["init"] == [] and not run_dir.exists()


def test_training_goes_on_without_wandb(small, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import raises
    with Tracker(small(wandb={"mode": "disabled"}), tmp_path, 0, None) as tracker:
        assert tracker.wandb_id is None
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"] and not caplog.text
    with Tracker(small(wandb={"mode": "offline"}), tmp_path, 0, None) as tracker:
        tracker.log({"step": 1})
    assert "continuing without wandb" in caplog.text and lines(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_run_is_described(small, tmp_path, wandb, mode):
    config = small(wandb={"mode": mode, "tags": ["a"], "project": "p", "entity": "e"})
    facts = {"ranks": 2, "git": {"commit": "0123abc", "dirty": False}}
    for folder in (tmp_path / "run", tmp_path / "run" / "search"):
        with Tracker(config, folder, 0, None, facts=facts) as tracker:
            tracker.log({"step": 3, "train/loss": 1.0})
            metrics = {"last": {"accuracy": 98.0, "val/accuracy": 97.0}, "selected": None}
            tracker.summarize({**metrics, "selected_on": None})
            tracker.ended("done")
    call, search = wandb.seen["init"]
    described = {
        "mode": mode,
        "project": "p",
        "entity": "e",
        "group": "small",
        "job_type": "train",
        "name": "run",
        "tags": ["a"],
        "dir": tmp_path / "run",
        "resume": "allow",
    }
    assert described.items() <= call.items()
    assert (search["name"], search["job_type"]) == ("run/search", "search")
    assert type(call["config"]["optim"]) is dict and call["config"]["facts"] == facts
    assert call["settings"].git_commit == "0123abc"
    assert wandb.seen["log"] == 2 * [{"step": 3, "train/loss": 1.0}]
    figures = {"last/accuracy": 98.0, "last/val/accuracy": 97.0}
    assert wandb.seen["summary"] == 2 * [figures, {"status": "done"}]


def test_the_id_is_kept_before_anything_is_trained_and_found_again(online, tmp_path, wandb):
    file = tmp_path / "wandb_id"
    first = Tracker(online(), tmp_path, 0, None)
    assert file.read_text() == f"{first.wandb_id}\n"  # and then it is killed
    with Tracker(online(), tmp_path, 0, None) as again:
        assert again.wandb_id == first.wandb_id
    with Tracker(online(), tmp_path, 5, "abcd1234"):  # as a checkpoint has it
        assert file.read_text() == "abcd1234\n"
    assert [call["id"] for call in wandb.seen["init"]] == [
        first.wandb_id,
        first.wandb_id,
        "abcd1234",
    ]
    for damaged in (b"", b"\xff\xfe", b"../../x\n"):
        file.write_bytes(damaged)
        with Tracker(online(), tmp_path, 0, None) as fresh:
            assert file.read_text() == f"{fresh.wandb_id}\n"
    first.__exit__(None, None, None)


@pytest.mark.parametrize("status", ["done", "diverged", "failed", "preempted", None])
def test_wandb_is_told_how_the_run_ended(online, tmp_path, wandb, status):
    for name in ("model", "averaged", "optimizer"):
        (tmp_path / f"{name}.safetensors").touch()
    try:
        with Tracker(online(artifacts=status == "done"), tmp_path, 0, None) as tracker:
            if status is None:
                raise KeyboardInterrupt
            tracker.upload(tmp_path)
            tracker.ended(status)
    except KeyboardInterrupt:
        assert status is None
    assert wandb.seen["summary"] == ([] if status is None else [{"status": status}])
    assert wandb.seen["finish"] == [{"exit_code": int(status != "done")}]
    assert len(wandb.seen["mark_preempting"]) == (status == "preempted")
    uploaded = ["model.safetensors", "averaged.safetensors"]
    uploads = [artifact.files for artifact in wandb.seen["upload"]]
    assert uploads == ([uploaded] if status == "done" else [])


def use_all(config, run_dir):
    with Tracker(config, run_dir, 0, None) as tracker:
        tracker.log({"step": 1})
        tracker.log({"step": 2})
        tracker.summarize({"last": {"accuracy": 98.0}})
        tracker.upload(run_dir)
        tracker.ended("preempted")
    assert [line["step"] for line in lines(run_dir)] == [1, 2]


class Wordless(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("fails", CALLS)
@pytest.mark.parametrize("error", [RuntimeError("server\nis gone"), Wordless()], ids=repr)
def test_a_failing_call_is_one_warning_of_one_line(online, tmp_path, wandb, caplog, fails, error):
    wandb.fails, wandb.error = fails, error
    caplog.set_level(logging.WARNING)
    use_all(online(artifacts=True), tmp_path)
    (record,) = caplog.records
    assert "\n" not in record.getMessage() and not record.getMessage().endswith(": ")
    # What had begun is ended all the same.
    assert len(wandb.seen["finish"]) == (fails not in ("init", "finish"))


@pytest.mark.parametrize("hangs", CALLS)
def test_a_hanging_call_is_one_warning(online, tmp_path, wandb, caplog, monkeypatch, hangs):
    for limit in ("START_S", "FINISH_S", "UPLOAD_S", "PREEMPTED_S"):
        monkeypatch.setattr(tracking, limit, 0.05)
    wandb.hangs = hangs
    caplog.set_level(logging.WARNING)
    started = time.monotonic()
    use_all(online(artifacts=True), tmp_path)
    assert time.monotonic() - started < 5
    (record,) = caplog.records
    assert "wandb sync" in record.getMessage()
