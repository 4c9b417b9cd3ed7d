"""The log is complete without W&B, whose failures never stop or change a training."""

import json
import logging
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from npas.training import build
from npas.training.distributed import Process
from npas.training.journal import Journal
from npas.training.optim import build_optimizer
from npas.training.state import TrainState
from npas.utils.git import Git

CALLS = ["init", "define_metric", "log", "summary", "upload", "wait", "mark_preempting", "finish"]


class FakeWandb:
    """Takes what W&B takes, as its package and as its run, and fails where told to."""

    def __init__(self):
        self.fails, self.error = None, RuntimeError()
        self.seen = {call: [] for call in CALLS}  # what each call was given, once it was done

    def takes(self, call, answer=lambda given: None):
        def take(*given, **named):
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
    return fake


@pytest.fixture
def online(small):
    return lambda **settings: small(wandb={"mode": "online", **settings})


def open_journal(config, run_dir, logged=0, wandb_id=None, rank=0):
    """Make the journal of a training that has logged some lines."""
    experiment = build(config)
    experiment.process = Process(rank, 1 + rank, torch.device("cpu"))
    state = TrainState(experiment, build_optimizer(experiment.model, config.optim), run_dir)
    state.progress.logged, state.progress.wandb_id = logged, wandb_id
    return Journal(state, steps_per_epoch=5, most_s=None)


def report(journal, step, **figures):
    journal.state.progress.step = step
    journal.report(figures)


def logged_steps(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("logged", "steps"), [(0, []), (1, [2]), (3, [2, 4, 4]), (4, [2, 4, 4, 6]), (9, [2, 4, 4, 6])]
)
def test_resuming_keeps_as_many_lines_as_were_logged(small, tmp_path, logged, steps):
    # What was measured after an epoch has the step of the line before it.
    log = "".join(f'{{"step": {n}}}\n' for n in (2, 4, 4, 6)) + '{"step": 9, "tra'
    (tmp_path / "log.jsonl").write_text(log)
    with open_journal(small(), tmp_path, logged) as journal:
        assert journal.state.progress.logged == len(steps)
        report(journal, 7)
    assert logged_steps(tmp_path) == [*steps, 7]


@pytest.mark.parametrize("bad", [b'{"step": 2, "a": "\xc3', b"[1]", b'{"step": null}', b"\x00"])
def test_a_damaged_line_is_left_out_and_counts_as_logged(small, tmp_path, bad):
    log = [b'{"step": 1}', bad, b'{"step": 3}', b'{"step": 4}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(log))
    with open_journal(small(), tmp_path, 3) as journal:
        assert journal.state.progress.logged == 2
        report(journal, 5)
    assert logged_steps(tmp_path) == [1, 3, 5]


def test_a_number_that_is_not_finite_is_null(small, tmp_path):
    with open_journal(small(), tmp_path) as journal:
        report(journal, 5, loss=math.nan, lr=0.1)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 5, "epoch": 1.0, "loss": None, "lr": 0.1}


def test_a_process_that_does_not_lead_counts_lines_and_writes_nothing(online, tmp_path, wandb):
    run_dir = tmp_path / "run"
    with open_journal(online(artifacts=True), run_dir, 3, "abcd1234", rank=1) as journal:
        report(journal, 1)
        journal.outcome("done")
        assert journal.state.progress.logged == 4
    assert wandb.seen["init"] == [] and not run_dir.exists()


def test_training_continues_without_wandb(small, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import raises
    with open_journal(small(wandb={"mode": "disabled"}), tmp_path) as journal:
        assert journal.state.progress.wandb_id is None
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"] and not caplog.text
    with open_journal(small(wandb={"mode": "offline"}), tmp_path) as journal:
        report(journal, 1)
    assert "continuing without wandb" in caplog.text and logged_steps(tmp_path) == [1]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_run_is_described(small, tmp_path, wandb, mode, monkeypatch):
    monkeypatch.setattr("npas.training.journal.git_state", lambda: Git("0123abc", False))
    config = small(wandb={"mode": mode, "tags": ["a"], "project": "p", "entity": "e"})
    metrics = {"last": {"accuracy": 98.0, "val/accuracy": 97.0}, "selected": None}
    for folder in (tmp_path / "run", tmp_path / "run" / "search"):
        with open_journal(config, folder) as journal:
            report(journal, 3, **{"train/loss": 1.0})
            journal.outcome("done", {**metrics, "selected_on": None})
    call, search = wandb.seen["init"]
    described = {
        "mode": mode, "project": "p", "entity": "e", "group": "small", "job_type": "train",
        "name": "run", "tags": ["a"], "dir": tmp_path / "run", "resume": "allow",
    }  # fmt: skip
    assert described.items() <= call.items()
    assert (search["name"], search["job_type"]) == ("run/search", "search")
    assert type(call["config"]["optim"]) is dict
    assert call["config"]["facts"].items() >= {"ranks": 1, "nodes": 1, "parameters": None}.items()
    assert call["settings"].git_commit == "0123abc"
    assert wandb.seen["log"] == 2 * [{"step": 3, "epoch": 0.6, "train/loss": 1.0}]
    summary = {"last/accuracy": 98.0, "last/val/accuracy": 97.0, "status": "done"}
    assert wandb.seen["summary"] == 2 * [summary]


def test_the_id_is_kept_before_anything_is_trained_and_found_again(online, tmp_path, wandb):
    file = tmp_path / "wandb_id"
    killed = open_journal(online(), tmp_path).__enter__()
    first = killed.state.progress.wandb_id
    assert file.read_text() == f"{first}\n"  # and then it is killed
    with open_journal(online(), tmp_path) as again:
        assert again.state.progress.wandb_id == first
    with open_journal(online(), tmp_path, 5, "abcd1234"):  # as a checkpoint has it
        assert file.read_text() == "abcd1234\n"
    assert [call["id"] for call in wandb.seen["init"]] == [first, first, "abcd1234"]
    for damaged in (b"", b"\xff\xfe", b"../../x\n"):
        file.write_bytes(damaged)
        with open_journal(online(), tmp_path) as fresh:
            assert file.read_text() == f"{fresh.state.progress.wandb_id}\n"
    killed.__exit__(None, None, None)


@pytest.mark.parametrize("status", ["done", "diverged", "failed", "preempted", None])
def test_wandb_gets_the_status_of_the_run(online, tmp_path, wandb, status):
    checkpoint = tmp_path / "checkpoints" / "step-00000000"
    checkpoint.mkdir(parents=True)
    for name in ("model", "averaged", "optimizer"):
        (checkpoint / f"{name}.safetensors").touch()
    try:
        with open_journal(online(artifacts=True), tmp_path) as journal:
            if status is None:
                raise KeyboardInterrupt
            journal.outcome(status)
    except KeyboardInterrupt:
        assert status is None
    assert wandb.seen["summary"] == ([] if status is None else [{"status": status}])
    assert wandb.seen["finish"] == [{"exit_code": int(status != "done")}]
    assert len(wandb.seen["mark_preempting"]) == (status == "preempted")
    uploaded = ["model.safetensors", "averaged.safetensors"]
    uploads = [artifact.files for artifact in wandb.seen["upload"]]
    assert uploads == ([uploaded] if status == "done" else [])


@pytest.mark.parametrize("fails", CALLS)
@pytest.mark.parametrize("error", [RuntimeError("server\nis gone"), SystemExit()], ids=repr)
def test_a_failing_call_is_one_warning_of_one_line(online, tmp_path, wandb, caplog, fails, error):
    wandb.fails, wandb.error = fails, error
    caplog.set_level(logging.WARNING)
    with open_journal(online(artifacts=True), tmp_path) as journal:
        report(journal, 1)
        report(journal, 2)
        journal.outcome("preempted" if fails == "mark_preempting" else "done")
    assert logged_steps(tmp_path) == [1, 2]
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert "wandb sync" not in record.getMessage()  # W&B wrote nothing here
    # What had begun is ended all the same.
    assert len(wandb.seen["finish"]) == (fails not in ("init", "finish"))
