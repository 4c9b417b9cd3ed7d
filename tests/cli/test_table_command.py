"""npas-table prints a table from result files alone."""

from pathlib import Path

import pytest

from npas.reporting import definitions
from npas.reporting.tables import Row, Table

ROW = Row("SSN", ("+exp=digits", "budget=0.1"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Let there be one small table, and a folder of results."""
    table = Table("tiny", "A title", (ROW,), "A note.")
    monkeypatch.setattr(definitions, "table", {"tiny": table}.__getitem__)
    monkeypatch.setattr(definitions, "names", lambda: ("tiny",))
    Path("mine/tables").mkdir(parents=True)


def test_a_table_without_results_shows_the_commands_that_fill_it(run):
    answer = run("npas-table", "tiny", "results=mine", code=0)
    assert answer.out.startswith("# A title")
    assert "`npas-train -m +exp=digits budget=0.1 seed=0,1,2`" in answer.out
    assert run("npas-table", "name=tiny", "results=mine").out == answer.out


def test_without_a_name_the_tables_are_listed(run):
    answer = run("npas-table")
    assert (answer.code, answer.out, answer.err) == (0, "tiny  A title\n", "")


def test_a_committed_table_is_compared_with_its_results(run):
    arguments = ("npas-table", "tiny", "results=mine", "check=true")
    assert run(*arguments).code == 1
    Path("mine/tables/tiny.md").write_text(run(*arguments[:-1]).out, encoding="utf-8")
    run(*arguments, code=0)
    with open("mine/tables/tiny.md", "a", encoding="utf-8") as file:
        file.write("edited\n")
    answer = run(*arguments)
    assert answer.code == 1
    assert "does not match the results" in answer.err


def test_chosen_epochs_and_broken_results(run):
    Path("mine/runs/digits/broken").mkdir(parents=True)
    Path("mine/runs/digits/broken/result.json").write_text("{", encoding="utf-8")
    answer = run("npas-table", "tiny", "results=mine", "epoch=selected", code=0)
    assert "chosen on held-out data" in answer.out
    assert "mine/runs/digits/broken/result.json" in answer.err
