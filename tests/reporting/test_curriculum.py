"""Curriculum tables and plots follow from the histories of runs."""

import pytest

from npas.reporting import curriculum
from npas.reporting.results import Metrics
from npas.reporting.tables import Cell, Row, Table

TASK = {"phases": [5, 10, 15], "phase_epochs": 2}
# After six epochs, two a phase, on three bands.
F1 = {
    5: [50.0, 60.0, 70.0, 80.0, 90.0, 91.0],
    10: [30.0, 40.0, 60.0, 70.0, 80.0, 81.0],
    15: [10.0, 20.0, 30.0, 40.0, 60.0, 71.0],
}
TABLE = Table("t", "A title", (), "A note.")


@pytest.fixture
def run(make_result):
    def make(add=0.0, **changes):
        history = {"epoch": [1, 2, 3, 4, 5, 6]}
        history |= {f"val/f1_{band}": [f1 + add for f1 in column] for band, column in F1.items()}
        config = {"task": TASK, "epochs": 6}
        values = {"metrics": Metrics({"f1": 80.0}), "config": config, "history": history}
        return make_result(**{**values, **changes})

    return make


def cells(**networks):
    return [Cell(Row(name, ()), dict(enumerate(runs))) for name, runs in networks.items()]


def test_a_run_without_a_history_of_every_band_is_named(run):
    with pytest.raises(ValueError, match="digits with seed 0 has no history of every band"):
        curriculum.appendix(cells(CNN=[run(history=None)]))


def test_each_phase_has_a_line_a_network_with_its_own_and_later_bands(run):
    gone = run(status="diverged", history=None)
    lines = curriculum.appendix(cells(CNN=[run()], SCNN=[run(), run(2.0), gone], none=[]))
    head = "| trained up to | network | 1 to 5 moves | 6 to 10 moves | 11 to 15 moves | n |"
    assert head in lines
    assert lines[-9:] == [
        "| 5 | CNN | **60.00** | 40.00 | 20.00 | 1 |",
        "| 5 | SCNN | **61.00 ± 1.41** | 41.00 ± 1.41 | 21.00 ± 1.41 | 2 |",
        "| 10 | CNN |  | **70.00** | 40.00 | 1 |",
        "| 10 | SCNN |  | **71.00 ± 1.41** | 41.00 ± 1.41 | 2 |",
        "| 15 | CNN |  |  | **71.00** | 1 |",
        "| 15 | SCNN |  |  | **72.00 ± 1.41** | 2 |",
        "",
        "Left out, for it diverged: SCNN (seed 2).",
        "",
    ]
    assert curriculum.appendix(cells(CNN=[], SCNN=[gone])) == []


@pytest.mark.slow
def test_the_plot_names_networks_phases_and_what_diverged(run, tmp_path):
    import matplotlib as mpl

    gap = {"epoch": [1, 2], **{f"val/f1_{band}": [None, 2.0] for band in F1}}
    gone = run(status="diverged", history=None)
    networks = cells(CNN=[run(history=gap)], SCNN=[gone, run(), run(2.0)])
    with mpl.rc_context({"svg.fonttype": "none"}):
        _, svg = curriculum.draw(TABLE, networks, tmp_path / "curves")
    text = svg.read_text(encoding="utf-8")
    for part in ("A title", "CNN (n = 1)", "SCNN (n = 2)", "up to 5 moves", "up to 15", "later"):
        assert part in text
    assert "diverged: SCNN (seed 0)" in text
