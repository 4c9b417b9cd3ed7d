"""npas-table prints a table from result files alone."""

from pathlib import Path

from command_line import Run


def test_a_table_without_results_shows_the_commands_that_fill_it(run: Run) -> None:
    Path("empty").mkdir()
    answer = run("npas-table", "digits", "results=empty")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("# ")
    assert "`npas-train -m +exp=digits budget=0.1 seed=0,1,2`" in answer.out


def test_the_name_is_a_key_like_others(run: Run) -> None:
    Path("empty").mkdir()
    arguments = ("results=empty",)
    assert (
        run("npas-table", "name=digits", *arguments).out
        == run("npas-table", "digits", *arguments).out
    )


def test_a_committed_table_is_compared_with_its_results(run: Run) -> None:
    arguments = ("npas-table", "digits", "results=mine", "check=true")
    Path("mine/tables").mkdir(parents=True)
    assert run(*arguments).code == 1
    Path("mine/tables/digits.md").write_text(run(*arguments[:-1]).out, encoding="utf-8")
    assert run(*arguments).code == 0
    with open("mine/tables/digits.md", "a", encoding="utf-8") as file:
        file.write("edited\n")
    answer = run(*arguments)
    assert answer.code == 1
    assert "is not what the results say" in answer.err


def test_chosen_epochs_and_broken_results(run: Run) -> None:
    Path("mine/runs/digits/broken").mkdir(parents=True)
    Path("mine/runs/digits/broken/result.json").write_text("{", encoding="utf-8")
    answer = run("npas-table", "digits", "results=mine", "epoch=selected")
    assert answer.code == 0, answer.err
    assert "chosen on held-out data" in answer.out
    assert "mine/runs/digits/broken/result.json" in answer.err
    answer = run("npas-table", "digits", "results=mine", "epoch=selected", "check=true")
    assert answer.code == 2 and "leave check or epoch out" in answer.err
