"""npas-runs lists, compares and deletes runs by what lies in their folders."""

import json
import shutil

import pytest

from npas.reporting import results
from npas.reporting.environment import environment
from npas.reporting.results import Dataset, Metrics, Result, Split
from npas.utils import files
from npas.utils.budget import BudgetReport


@pytest.fixture
def make_run(tmp_path):
    """Return a function that makes a run's folder below runs/, of the experiment `digits`."""

    def make(budget, seed=0, lr=0.1, **changes):
        folder = tmp_path / "runs/digits" / f"budget-{budget}_seed-{seed}_{seed:08x}"
        folder.mkdir(parents=True)
        value, used = 90.0 + 5 * float(budget) + seed, round(1000 * float(budget))
        result = Result(
            status=changes.get("status", "done"),
            exp="digits",
            config={"budget": budget, "seed": seed, "optim": {"lr": lr}},
            config_hash=f"{seed:08x}{'0' * 56}",
            budget=BudgetReport(budget, 1000, used, used),
            split=Split(0, 0, 0, used),
            metrics=Metrics({"accuracy": value}),
            seed=seed,
            steps=1,
            epochs=1,
            wall_s=60.0,
            peak_memory_bytes=None,
            dataset=Dataset("digits", "real"),
            **environment(),
        )
        if changes.get("result", True):
            results.write(folder, result)
        (folder / "config.yaml").write_text(f"optim: {{lr: {lr}}}\n", encoding="utf-8")
        lines = [{"step": step, "train/loss": value / step} for step in range(1, 40)]
        text = "\n".join(map(json.dumps, lines))
        (folder / "log.jsonl").write_text(text + '\n{"step": 40, "tra', encoding="utf-8")
        return folder

    return make


def test_runs_are_listed_filtered_and_sorted(run, make_run):
    make_run("0.1"), make_run("0.1", 1), make_run("2", lr=0.3)
    make_run("0.5", result=False)
    broken = make_run("4")
    (broken / "result.json").write_text('{"exp": 3}', encoding="utf-8")
    whole = run("npas-runs")
    assert whole.code == 0 and whole.out.endswith("\n5 runs\n")
    assert all(status in whole.out for status in ("done", "unfinished", "damaged", "90.50%"))
    for arguments, budgets in (
        (["status=done"], ["0.1", "0.1", "2"]),
        (["budget=0.10,2", "sort=-value"], ["2", "0.1", "0.1"]),
        (["budget=10%,200%", "sort=-value"], ["2", "0.1", "0.1"]),
        (["optim.lr=0.3"], ["2"]),
        (["optim.lr=0.1", "seed=0", "status=done,unfinished", "sort=budget"], ["0.1", "0.5"]),
        (["status=un*"], ["0.5"]),
        (["sort=seconds", "exp=dig*", "status=done,damaged"], ["0.1", "0.1", "2", "4"]),
        (["exp=other"], []),
    ):
        listed = json.loads(run("npas-runs", *arguments, "format=json").out)
        assert [each["budget"] for each in listed] == budgets, arguments
    rows = run("npas-runs", "status=done", "format=csv").out.splitlines()
    assert rows[0].startswith("exp,budget,seed") and rows[1].startswith("digits,0.1,0,done")


def test_a_result_copied_from_another_run_is_damaged_and_no_second_run(run, make_run):
    shutil.copy(make_run("0.1", 2) / "result.json", make_run("1", 3))
    listed = json.loads(run("npas-runs", "format=json").out)
    assert [(each["budget"], each["status"]) for each in listed] == [
        ("0.1", "done"),
        ("1", "damaged"),
    ]


def test_two_runs_are_compared(run, make_run):
    one, other = make_run("0.1"), make_run("2", 1, lr=0.3)
    with open(one / "log.jsonl", "ab") as log:
        log.write(b"\xe0\x80 of a damaged disk\n")
    answer = run("npas-runs", "compare", str(one), str(other), code=0)
    table = [line.split() for line in answer.out.splitlines()]
    assert ["optim.lr", "0.1", "0.3"] in table and ["accuracy", "90.5", "101"] in table
    assert ["1", "90.5", "101"] in table and ["39", "2.32051", "2.58974"] in table
    assert len(table) < 30


def test_runs_are_deleted_only_when_asked(run, make_run, monkeypatch):
    kept, failed, training = make_run("0.1"), make_run("1", status="failed"), make_run("2", 5)
    unsaid = run("npas-runs", "clean", "status=failed")
    assert unsaid.code == 2 and "yes=true" in unsaid.err and failed.exists()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def ends(question):
        raise EOFError  # Ctrl-D

    for answer in (lambda question: "n", ends):
        monkeypatch.setattr("builtins.input", answer)
        assert "nothing was deleted" in run("npas-runs", "clean", "status=failed", code=0).out
        assert failed.exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    run("npas-runs", "clean", "status=failed", code=0)
    assert kept.exists() and not failed.exists()
    with files.locked(training.with_name(f".{training.name}.lock"), wait=False):
        answer = run("npas-runs", "clean", "seed=5", "yes=true")
    assert answer.code == 1 and "is being trained: not deleted" in answer.err and training.exists()


def test_what_is_no_run_is_never_deleted(run, make_run, tmp_path, monkeypatch):
    other = tmp_path / "runs/project/app"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("name: web\n", encoding="utf-8")
    (other / "result.json").write_text("{}", encoding="utf-8")
    mine, finished = make_run("0.1"), make_run("2", 7, result=False)
    linked = tmp_path / "links/digits"
    linked.parent.mkdir()
    linked.symlink_to(mine.parent)
    assert "2 runs" in run("npas-runs").out
    answer = run("npas-runs", "clean", "root=links", "status=done", "yes=true")
    assert answer.code == 1 and "behind a symbolic link: not deleted" in answer.err

    def finish(question):  # while the question is open
        (finished / "result.json").write_text((mine / "result.json").read_text())
        return "y"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", finish)
    answer = run("npas-runs", "clean", "status=unfinished")
    assert answer.code == 1 and "has changed since it was listed" in answer.err
    assert other.exists() and mine.exists() and finished.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("root=nowhere", "there is no folder root=nowhere"),
        ("run_root=nowhere", "there is no folder root=nowhere"),
        ("budget", "'budget' is not key=value"),
        ("optim.lrr=1", "no run has a key 'optim.lrr'; did you mean optim.lr"),
        ("sort=size", "sort=size: sort by one of exp, budget"),
        ("format=xml", "format must be table, csv, json, got 'xml'"),
        ("compare runs", "compare takes two folders"),
        ("compare runs runs", "runs holds no run"),
        ("clean", "clean needs a filter"),
        ("clean yes=perhaps seed=0", "yes must be true or false"),
    ],
)
def test_invalid_arguments_get_one_line(run, make_run, arguments, line):
    make_run("0.1")
    run("npas-runs", *arguments.split(), refused=line)
