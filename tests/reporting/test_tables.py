"""A table is made from result files alone, and says what it lacks."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npas.reporting import results, tables
from npas.reporting.compose import compose
from npas.reporting.published import Figure
from npas.reporting.results import Git, Metrics, Result
from npas.reporting.tables import Cell, Row, Table

Make = Callable[..., Result]
Keep = Callable[..., Path]

TABLE = Table(
    name="tiny",
    title="A title",
    rows=(
        Row("dense", ("+exp=digits", "budget=dense"), "dense"),
        Row("SSN", ("+exp=digits", "budget=0.1"), "SSN"),
        Row("theirs", None, published=Figure("x", "c10", 4.0, 36, "a poster", "a lost digit")),
    ),
    note="A note.",
)


def cells(root: Path) -> list[Cell]:
    return tables.load(TABLE, root)


def line(label: str, text: str) -> list[str]:
    (found,) = re.findall(rf"^\| {label} \|.*$", text, re.MULTILINE)
    return [entry.strip() for entry in found.strip("|").split("|")]


def test_a_cell_is_mean_and_sample_deviation_over_seeds_with_n(tmp_path: Path, keep: Keep) -> None:
    for seed, accuracy in enumerate((96.0, 97.0, 98.0)):
        keep(tmp_path, "+exp=digits", "budget=0.1", seed=seed, accuracy=accuracy, used=100)
    entries = line("SSN", tables.markdown(TABLE, cells(tmp_path)))
    assert entries[:4] == ["SSN", "100", "97.00 ± 1.00", "3"]


def test_a_single_run_has_no_spread_and_the_cell_asks_for_the_rest(
    tmp_path: Path, keep: Keep
) -> None:
    keep(tmp_path, "+exp=digits", "budget=0.1", seed=1, accuracy=96.5, used=100)
    figure = line("SSN", tables.markdown(TABLE, cells(tmp_path)))[2]
    assert figure == "96.50; `npas-train -m +exp=digits budget=0.1 seed=0,2`"


def test_a_cell_without_results_shows_the_command_that_fills_it(tmp_path: Path) -> None:
    figure = line("dense", tables.markdown(TABLE, cells(tmp_path)))[2]
    assert figure == "`npas-train -m +exp=digits budget=dense seed=0,1,2`"


def test_a_run_of_another_recipe_does_not_slip_in(tmp_path: Path, keep: Keep) -> None:
    keep(tmp_path, "+exp=digits", "budget=0.1", "epochs=1", accuracy=50.0, used=100)
    keep(tmp_path, "+exp=digits", "budget=0.1", "model.width=1", accuracy=50.0, used=100)
    assert all(not cell.found for cell in cells(tmp_path))


def test_keys_that_do_not_decide_the_result_do_not_matter(tmp_path: Path, keep: Keep) -> None:
    keep(tmp_path, "+exp=digits", "budget=10%", "trainer.log_every=3", used=100)
    assert list(cells(tmp_path)[1].found) == [0]


def test_stand_in_data_feeds_no_table(tmp_path: Path, keep: Keep) -> None:
    source = results.Dataset("digits", "synthetic")
    keep(tmp_path, "+exp=digits", "budget=0.1", used=100, dataset=source)
    assert not cells(tmp_path)[1].found


COPY = ("+exp=wrn_cifar10", "budget=0.1")


@pytest.mark.parametrize("published", [True, False, None])
def test_results_on_a_copy_of_the_data_stand_in_rows_of_the_copy_alone(
    published: bool | None, tmp_path: Path, keep: Keep
) -> None:
    rows = (Row("set", COPY), Row("jpeg", (*COPY, "data.verify=warn")))
    table = dataclasses.replace(TABLE, rows=rows)
    dataset = results.Dataset("cifar10", "real", published)
    for row in rows:
        keep(tmp_path, *row.words, used=100, dataset=dataset)
    own, copy = tables.load(table, tmp_path)
    assert (bool(own.found), bool(copy.found)) == (published is not False, published is False)
    text = tables.markdown(table, [own, copy])
    assert "| jpeg (copy) |" in text and "| set |" in text
    assert ("1 (copy) on data that are not the published files" in text) == (published is False)
    beside = dataclasses.replace(rows[1], published=Figure("x", "c10", 4.0, 36, "a poster", ""))
    with pytest.raises(AssertionError, match="a copy has no published figure"):
        tables.fill(dataclasses.replace(table, rows=(beside,)), [])


def test_runs_that_went_wrong_are_shown(tmp_path: Path, keep: Keep) -> None:
    for seed, status in enumerate(("done", "diverged", "failed")):
        keep(tmp_path, "+exp=digits", "budget=0.1", seed=seed, used=100, status=status)
    figure = line("SSN", tables.markdown(TABLE, cells(tmp_path)))[2]
    # A diverged run is an answer; a failed one is run again.
    again = "`npas-train +exp=digits budget=0.1 seed=2`"
    assert figure == f"97.00; diverged: seed 1; failed: seed 2; {again}"


@pytest.mark.parametrize(
    ("statuses", "figure"),
    [
        (("done", "diverged", "done"), "97.00 ± 0.00; diverged: seed 1"),
        (("diverged", "diverged", "diverged"), "diverged: seed 0, 1, 2"),
        (("diverged", "preempted", "done"), "97.00; diverged: seed 0; `{} seed=1`"),
        (("preempted", "preempted", "diverged"), "diverged: seed 2; `{sweep} seed=0,1`"),
        (("preempted",) * 3, "`{sweep} seed=0,1,2`"),
    ],
)
def test_a_cell_says_that_runs_diverged_and_takes_preempted_ones_as_not_run_yet(
    tmp_path: Path, keep: Keep, statuses: tuple[str, ...], figure: str
) -> None:
    for seed, status in enumerate(statuses):
        keep(tmp_path, "+exp=digits", "budget=0.1", seed=seed, used=100, status=status)
    words = "+exp=digits budget=0.1"
    entries = line("SSN", tables.markdown(TABLE, cells(tmp_path)))
    assert entries[2] == figure.format(f"npas-train {words}", sweep=f"npas-train -m {words}")
    assert entries[3] == (str(statuses.count("done")) if "done" in statuses else "")


def test_preempted_runs_are_none_that_anything_was_measured_on(tmp_path: Path, keep: Keep) -> None:
    keep(tmp_path, "+exp=digits", "budget=0.1", used=100, status="preempted", metrics=None)
    assert all(not cell.found for cell in cells(tmp_path))
    assert "No results yet." in tables.markdown(TABLE, cells(tmp_path))


def test_errors_stand_beside_published_errors(tmp_path: Path, keep: Keep) -> None:
    keep(tmp_path, "+exp=digits", "budget=dense", accuracy=95.5)
    published = Figure("x", "c10", 4.0, 36, "a poster", "a lost digit")
    row = Row("dense", ("+exp=digits", "budget=dense"), published=published)
    table = dataclasses.replace(TABLE, rows=(row, TABLE.rows[2]), as_error=True, seeds=(0,))
    text = tables.markdown(table, tables.load(table, tmp_path))
    assert "| network | parameters | test error, % | n | published | ours - published |" in text
    assert line("dense", text) == ["dense", "1,000", "4.50", "1", "4.00 (36M) [2]", "+0.50"]
    assert line("theirs", text) == ["theirs", "", "", "", "4.00 (36M) [2]", ""]
    assert "1. Published figures: a poster.\n2. Mended: a lost digit." in text


def test_the_table_says_on_what_it_was_measured(tmp_path: Path, keep: Keep) -> None:
    keep(tmp_path, "+exp=digits", "budget=dense")
    keep(tmp_path, "+exp=digits", "budget=dense", seed=1, git=Git("0123abc", True))
    text = tables.markdown(TABLE, cells(tmp_path))
    origin = "Runs: 2 on a processor, torch 2.15.0; 1 of a tree with uncommitted changes."
    assert origin in text


def test_the_dense_figure_of_an_experiment_is_of_the_same_recipe(
    tmp_path: Path, keep: Keep
) -> None:
    for seed, accuracy in enumerate((97.0, 99.0)):
        keep(tmp_path / "runs", "+exp=digits", "budget=dense", seed=seed, accuracy=accuracy)
    keep(tmp_path / "runs", "+exp=digits", "budget=dense", "model.width=1", accuracy=50.0)
    keep(tmp_path / "runs", "+exp=digits", "budget=0.1", accuracy=50.0, used=100)
    asked = compose("+exp=digits", "budget=0.1", "seed=7", "sharing.groups=shape")
    figure = tables.dense_figure(asked, root=tmp_path)
    assert figure is not None
    assert (figure.mean, figure.n) == (98.0, 2)
    assert tables.dense_figure(compose("+exp=digits", "epochs=1"), root=tmp_path) is None
    assert tables.dense_figure(asked, root=tmp_path / "nowhere") is None


def test_a_metric_that_is_not_there_is_named(tmp_path: Path, keep: Keep) -> None:
    keep(tmp_path, "+exp=digits", "budget=dense")
    table = dataclasses.replace(TABLE, metric="f1")
    with pytest.raises(ValueError, match="no metric 'f1': it has accuracy"):
        tables.markdown(table, cells(tmp_path))


def test_a_config_composes_inside_a_running_command(tmp_path: Path) -> None:
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_module("npas.configs", version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose("+exp=digits", "seed=11").seed == 11
        assert GlobalHydra.instance().hydra is outer


COUNTED = Table(
    name="counted",
    title="A title",
    rows=(
        Row(
            "ours",
            ("+exp=digits", "budget=dense"),
            published=Figure("x", "c10", 4.0, 36.4, "a poster", None, gpu_days=0.4),
            section="First",
        ),
        Row("theirs", None, published=Figure("y", "c10", 3.0, 3, "a poster", None, gpu_days=1800)),
        Row("later", ("+exp=digits", "budget=0.1"), section="Last", metric="loss"),
    ),
    note="A note.",
    as_error=True,
    count=lambda row: len(row.words or ()),
)


def test_sections_have_grids_of_their_own(tmp_path: Path) -> None:
    rows = (
        dataclasses.replace(COUNTED.rows[0], section="First"),
        dataclasses.replace(COUNTED.rows[1], section="First"),
        COUNTED.rows[2],
    )
    table = dataclasses.replace(COUNTED, rows=rows)
    text = tables.markdown(table, tables.fill(table, []))
    first, last = text.index("## First\n\n| network |"), text.index("## Last\n\n| network |")
    assert first < text.index("| ours |") < text.index("| theirs |") < last
    # Only what a section has figures of has a column there.
    assert "| network | parameters | test error, % | n |\n" in text[last:]
    assert "\n\n\n" not in text


def test_counts_are_planned_beside_the_published_ones(tmp_path: Path, keep: Keep) -> None:
    text = tables.markdown(COUNTED, tables.fill(COUNTED, []))
    assert line("ours", text)[:3] == ["ours", "36.4M", "2"]
    assert line("theirs", text) == ["theirs", "3M", "", "", "", "3.00", "", "", "1800"]
    keep(tmp_path, "+exp=digits", "budget=dense")
    text = tables.markdown(COUNTED, tables.load(COUNTED, tmp_path))
    assert line("ours", text)[2] == "1,000"  # what the run has used


def test_gpu_days_are_measured_on_a_gpu_alone(tmp_path: Path, keep: Keep) -> None:
    words, day = ("+exp=digits", "budget=dense"), 24 * 60 * 60
    keep(tmp_path, *words, wall_s=7.0 * day)
    text = tables.markdown(COUNTED, tables.load(COUNTED, tmp_path))
    assert line("ours", text)[-2:] == ["not measured", "0.4"]
    gpu = results.Hardware("Linux", "a processor", 2, 1, "a GPU", 4)
    # Of four GPUs that the machine has, the first run used one and the second three.
    keep(tmp_path, *words, seed=1, wall_s=0.2 * day, hardware=gpu)
    text = tables.markdown(COUNTED, tables.load(COUNTED, tmp_path))
    assert line("ours", text)[-2:] == ["0.2", "0.4"]
    keep_parts(keep, tmp_path / "three", *words, wall_s=0.1 * day, hardware=gpu)
    text = tables.markdown(COUNTED, tables.load(COUNTED, tmp_path / "three"))
    assert line("ours", text)[-2:] == ["0.3", "0.4"]


def keep_parts(keep: Keep, root: Path, *words: str, **values: Any) -> None:
    """Write the result of a run of 3 processes x 2 parts."""
    parallel = values.pop("parallel", results.Parallel(ranks=3, nodes=1, grad_accum_steps=2))
    parts = ("trainer.devices=3", "trainer.grad_accum_steps=2")
    keep(root, *words, *parts, parallel=parallel, **values)


def test_runs_in_other_parts_stand_in_a_row_but_are_never_pooled(
    tmp_path: Path, keep: Keep
) -> None:
    words = ("+exp=digits", "budget=dense")

    def shown() -> tuple[str, str]:
        text = tables.markdown(TABLE, cells(tmp_path))
        return line("dense", text)[2], text

    def metrics(accuracy: float) -> results.Metrics:
        return results.Metrics({"accuracy": accuracy}, None, None)

    mixed = results.Parallel(3, 1, 2, [{"steps": 5, "ranks": 1, "grad_accum_steps": 1}])
    keep_parts(keep, tmp_path, *words, metrics=metrics(50.0), parallel=mixed)
    unlike = results.Parallel(3, 1, 1)  # of an old version, which did not hash what it had
    keep(tmp_path, *words, seed=1, metrics=metrics(50.0), parallel=unlike)
    assert "processes" not in shown()[1]
    keep_parts(keep, tmp_path, *words, seed=2, metrics=metrics(80.0))
    figure, text = shown()
    assert figure.startswith("80.00") and "1 in 3 processes x 2 parts" in text
    keep(tmp_path, *words, metrics=metrics(90.0))
    figure, text = shown()
    assert figure.startswith("90.00") and "processes" not in text


def test_a_row_may_have_a_metric_of_its_own(tmp_path: Path, keep: Keep) -> None:
    metrics = results.Metrics({"accuracy": 90.0, "loss": 97.5}, None, None)
    keep(tmp_path, "+exp=digits", "budget=0.1", metrics=metrics)
    cell = tables.load(COUNTED, tmp_path)[2]
    assert line("later", tables.markdown(COUNTED, [cell]))[2].startswith("2.50; ")


def test_a_table_can_show_the_epochs_that_were_chosen_on_held_out_data(
    tmp_path: Path, keep: Keep
) -> None:
    words = ("+exp=digits", "budget=dense")
    row = Row("a network", words)
    table = Table("t", "T", (row,), "note", epoch="selected", seeds=(0, 1))
    chosen = Metrics({"accuracy": 90.0}, {"accuracy": 95.5}, "val accuracy")
    keep(tmp_path, *words, seed=0, metrics=chosen)
    keep(tmp_path, *words, seed=1, accuracy=80.0)
    text = tables.markdown(table, tables.load(table, tmp_path))
    assert "| 95.50; no epoch chosen: seed 1 | 1 |" in text
    assert "chosen on held-out data" in text and "last epoch" not in text
    assert "by `npas-table t epoch=selected`" in text and "reproduce-table" not in text
    last = tables.markdown(dataclasses.replace(table, epoch="last"), tables.load(table, tmp_path))
    assert "| 85.00 ± 7.07 | 2 |" in last


def test_a_table_may_say_more_below_its_grid() -> None:
    table = dataclasses.replace(TABLE, appendix=lambda cells: [f"{len(cells)} rows.", ""])
    assert "|\n\n3 rows.\n\n1. Published" in tables.markdown(table, tables.fill(table, []))
