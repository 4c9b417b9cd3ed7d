"""A table is made from result files alone, and says what it lacks."""

import dataclasses
import re

import pytest

from npas.reporting import tables
from npas.reporting.compose import planned_count
from npas.reporting.environment import Hardware
from npas.reporting.published import Figure
from npas.reporting.results import Dataset, Metrics, Parallel
from npas.reporting.tables import Row, Table
from npas.utils.git import Git

SHARED, DENSE = ("+exp=digits", "budget=0.1"), ("+exp=digits", "budget=dense")
TABLE = Table(
    name="tiny",
    title="A title",
    rows=(
        Row("dense", DENSE, "dense"),
        Row("SSN", SHARED, "SSN"),
        Row("theirs", None, published=Figure("x", "c10", 4.0, 36, "a poster", "a lost digit")),
    ),
    note="A note.",
)


def page(root, table=TABLE):
    return tables.markdown(table, tables.load(table, root))


def line(label, text):
    (found,) = re.findall(rf"^\| {label} \|.*$", text, re.MULTILINE)
    return [entry.strip() for entry in found.strip("|").split("|")]


ONE, SWEEP = (f"`npas-train {many}+exp=digits budget=0.1 seed=" for many in ("", "-m "))


@pytest.mark.parametrize(
    ("statuses", "figure"),
    [
        ((), f"{SWEEP}0,1,2`"),
        (("done", "done", "done"), "96.00 ± 1.00"),
        (("done",), f"95.00; {SWEEP}1,2`"),
        # A diverged run is an answer; a failed one is run again, a preempted one not run yet.
        (("done", "diverged", "failed"), f"95.00; diverged: seed 1; failed: seed 2; {ONE}2`"),
        (("done", "diverged", "done"), "96.00 ± 1.41; diverged: seed 1"),
        (("diverged", "diverged", "diverged"), "diverged: seed 0, 1, 2"),
        (("diverged", "preempted", "done"), f"97.00; diverged: seed 0; {ONE}1`"),
        (("preempted", "preempted", "diverged"), f"diverged: seed 2; {SWEEP}0,1`"),
        (("preempted",) * 3, f"{SWEEP}0,1,2`"),
    ],
)
def test_a_cell_is_mean_and_sample_deviation_and_says_what_went_wrong_or_is_missing(
    tmp_path, keep, statuses, figure
):
    for seed, status in enumerate(statuses):
        keep(tmp_path, *SHARED, seed=seed, accuracy=95.0 + seed, used=100, status=status)
    text = page(tmp_path)
    entries = line("SSN", text)
    assert entries[0] == "SSN" and entries[2] == figure
    assert entries[3] == (str(statuses.count("done")) if "done" in statuses else "")
    assert ("No results yet." in text) == (not {*statuses} - {"preempted"})


def test_only_results_of_the_rows_own_config_and_of_real_data_slip_in(tmp_path, keep):
    keep(tmp_path, *SHARED, "epochs=1", accuracy=50.0, used=100)
    keep(tmp_path, *SHARED, "model.width=1", accuracy=50.0, used=100)
    keep(tmp_path, *SHARED, seed=2, used=100, dataset=Dataset("digits", "synthetic"))
    assert all(not cell.found for cell in tables.load(TABLE, tmp_path))
    keep(tmp_path, "+exp=digits", "budget=10%", "trainer.log_every=3", used=100)
    assert list(tables.load(TABLE, tmp_path)[1].found) == [0]


COPY = ("+exp=wrn_cifar10", "budget=0.1")


@pytest.mark.parametrize("published", [True, False, None])
def test_results_on_a_copy_of_the_data_stand_in_rows_of_the_copy_alone(published, tmp_path, keep):
    rows = (Row("set", COPY), Row("jpeg", (*COPY, "data.verify=warn")))
    table = dataclasses.replace(TABLE, rows=rows)
    dataset = Dataset("cifar10", "real", published)
    for row in rows:
        keep(tmp_path, *row.overrides, used=100, dataset=dataset)
    own, copy = tables.load(table, tmp_path)
    assert (bool(own.found), bool(copy.found)) == (published is not False, published is False)
    text = tables.markdown(table, [own, copy])
    assert "| jpeg (copy) |" in text and "| set |" in text
    assert ("1 (copy) on data that are not the published files" in text) == (published is False)
    beside = dataclasses.replace(rows[1], published=Figure("x", "c10", 4.0, 36, "a poster", ""))
    with pytest.raises(AssertionError, match="a copy has no published figure"):
        tables.fill(dataclasses.replace(table, rows=(beside,)), [])


def test_errors_stand_beside_published_errors(tmp_path, keep):
    keep(tmp_path, *DENSE, accuracy=95.5)
    row = Row("dense", DENSE, published=TABLE.rows[2].published)
    table = dataclasses.replace(TABLE, rows=(row, TABLE.rows[2]), as_error=True, seeds=(0,))
    text = page(tmp_path, table)
    assert "| network | parameters | test error, % | n | published | ours - published |" in text
    assert line("dense", text) == ["dense", "1,000", "4.50", "1", "4.00 (36M) [2]", "+0.50"]
    assert line("theirs", text) == ["theirs", "", "", "", "4.00 (36M) [2]", ""]
    assert "1. Published figures: a poster.\n2. Mended: a lost digit." in text


def test_the_table_says_on_what_it_was_measured(tmp_path, keep):
    keep(tmp_path, *DENSE)
    keep(tmp_path, *DENSE, seed=1, git=Git("0123abc", True))
    origin = "Runs: 2 on a processor, torch 2.15.0; 1 of a tree with uncommitted changes."
    assert origin in page(tmp_path)


def test_a_missing_metric_is_named(tmp_path, keep):
    keep(tmp_path, *DENSE)
    with pytest.raises(ValueError, match="no metric 'f1': it has accuracy"):
        page(tmp_path, dataclasses.replace(TABLE, metric="f1"))


def published_in(days, name, value, millions):
    return Figure(name, "c10", value, millions, "a poster", None, gpu_days=days)


COUNTED = Table(
    name="counted",
    title="A title",
    rows=(
        Row("ours", DENSE, published=published_in(0.4, "x", 4.0, 36.4), section="First"),
        Row("theirs", None, published=published_in(1800, "y", 3.0, 3), section="First"),
        Row("later", SHARED, section="Last", metric="loss"),
    ),
    note="A note.",
    as_error=True,
    counted=True,
    appendix=lambda cells: [f"{len(cells)} rows.", ""],
)


def test_sections_have_grids_of_their_own_with_planned_and_published_counts(tmp_path, keep):
    text = tables.markdown(COUNTED, tables.fill(COUNTED, []))
    first, last = text.index("## First\n\n| network |"), text.index("## Last\n\n| network |")
    assert first < text.index("| ours |") < text.index("| theirs |") < last
    # Only what a section has figures of has a column there.
    assert "| network | parameters | test error, % | n |\n" in text[last:]
    assert "\n\n\n" not in text and "|\n\n3 rows.\n\n1. Published" in text
    assert line("ours", text)[:3] == ["ours", "36.4M", f"{planned_count(*DENSE):,}"]
    assert line("theirs", text) == ["theirs", "3M", "", "", "", "3.00", "", "", "1800"]
    keep(tmp_path, *DENSE)
    keep(tmp_path, *SHARED, metrics=Metrics({"accuracy": 90.0, "loss": 97.5}))
    text = page(tmp_path, COUNTED)
    assert line("ours", text)[2] == "1,000"  # what the run has used
    assert line("later", text)[2].startswith("2.50; ")  # by the row's own metric


def test_gpu_days_are_measured_on_a_gpu_alone(tmp_path, keep):
    day = 24 * 60 * 60
    keep(tmp_path, *DENSE, wall_s=7.0 * day)
    assert line("ours", page(tmp_path, COUNTED))[-2:] == ["not measured", "0.4"]
    gpu = Hardware("Linux", "a processor", 2, 1, "a GPU", 4)
    # Of four GPUs that the machine has, the first run used one and the second three.
    keep(tmp_path, *DENSE, seed=1, wall_s=0.2 * day, hardware=gpu)
    assert line("ours", page(tmp_path, COUNTED))[-2:] == ["0.2", "0.4"]
    keep_parts(keep, tmp_path / "three", wall_s=0.1 * day, hardware=gpu)
    assert line("ours", page(tmp_path / "three", COUNTED))[-2:] == ["0.3", "0.4"]


def keep_parts(keep, root, earlier=(), **values):
    """Write the result of a dense run of 3 processes x 2 parts."""
    parts = ("trainer.devices=3", "trainer.grad_accum_steps=2")
    keep(root, *DENSE, *parts, parallel=Parallel(3, 1, 2, [*earlier]), **values)


def test_runs_in_other_parts_stand_in_a_row_but_are_never_pooled(tmp_path, keep):
    def shown():
        text = page(tmp_path)
        return line("dense", text)[2], text

    mixed = {"steps": 5, "ranks": 1, "grad_accum_steps": 1}
    keep_parts(keep, tmp_path, [mixed], accuracy=50.0)
    unlike = Parallel(3, 1, 1)  # of an old version, which did not hash what it had
    keep(tmp_path, *DENSE, seed=1, accuracy=50.0, parallel=unlike)
    assert "processes" not in shown()[1]
    keep_parts(keep, tmp_path, seed=2, accuracy=80.0)
    figure, text = shown()
    assert figure.startswith("80.00") and "1 in 3 processes x 2 parts" in text
    keep(tmp_path, *DENSE, accuracy=90.0)
    figure, text = shown()
    assert figure.startswith("90.00") and "processes" not in text


def test_a_table_can_show_the_epochs_that_were_chosen_on_held_out_data(tmp_path, keep):
    table = Table("t", "T", (Row("a network", DENSE),), "note", epoch="selected", seeds=(0, 1))
    chosen = Metrics({"accuracy": 90.0}, {"accuracy": 95.5}, "val accuracy")
    keep(tmp_path, *DENSE, seed=0, metrics=chosen)
    keep(tmp_path, *DENSE, seed=1, accuracy=80.0)
    text = page(tmp_path, table)
    assert "| 95.50; no epoch chosen: seed 1 | 1 |" in text
    assert "chosen on held-out data" in text and "last epoch" not in text
    assert "by `npas-table t epoch=selected`" in text and "reproduce-table" not in text
    last = dataclasses.replace(table, epoch="last")
    assert "| 85.00 ± 7.07 | 2 |" in page(tmp_path, last)
    values = [tables.load(each, tmp_path)[0].values("accuracy") for each in (table, last)]
    assert values == [{0: 95.5}, {0: 90.0, 1: 80.0}]  # as appendices read them
