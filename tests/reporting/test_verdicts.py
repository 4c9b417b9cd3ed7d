"""Wins, ties and losses are computed from the runs alone."""

from types import SimpleNamespace

import pytest

from npas.reporting.tables import Cell, Row
from npas.reporting.verdicts import PLAIN, paired, verdicts


def cell(label, values, metric):
    found = {
        seed: SimpleNamespace(status="done", metrics=SimpleNamespace(last={metric: value}))
        for seed, value in enumerate(values)
    }
    return Cell(Row(label, None), found)


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "line"),
    [
        ("accuracy", [71, 72, 73], [67, 68, 69], "| a | b | 72.00 | 68.00 | +4.00 | 0.82 | wins |"),
        (
            "accuracy",
            [67, 68, 69],
            [71, 72, 73],
            "| a | b | 68.00 | 72.00 | -4.00 | 0.82 | loses |",
        ),
        ("accuracy", [70, 72, 74], [70, 71, 72], "| a | b | 72.00 | 71.00 | +1.00 | 1.29 | ties |"),
        ("loss", [1.8, 1.9], [2.0, 2.1], "| a | b | 1.850 | 2.050 | -0.200 | 0.071 | wins |"),
    ],
)
def test_a_difference_counts_from_two_standard_errors_on(metric, ours, theirs, line):
    cells = [cell("a", ours, metric), cell("b", theirs, metric)]
    assert line in verdicts([("a", "b")], metric)(cells)


def test_one_run_is_no_verdict():
    cells = [cell("a", [70], "accuracy"), cell("b", [60, 61], "accuracy")]
    assert verdicts([("a", "b")], "accuracy")(cells) == []


def test_schemes_are_compared_seed_by_seed():
    base = cell(f"{PLAIN}, 10%", [1.0, 2.0, 3.0], "loss")
    near = cell("near, 10%", [1.1, 2.2, 3.0], "loss")  # differences 0.1, 0.2, 0: t = sqrt(3)
    alone = cell("alone, 10%", [1.0], "loss")
    lines = paired([base, near, alone])
    assert lines[-2] == "| 10% | near | +0.100 | 0.225 | 3 |"
    assert not [line for line in lines if "| alone |" in line]
    assert paired([base, alone]) == []
