"""What is said of a curriculum follows from the histories of its runs."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npas.reporting import curriculum, plots
from npas.reporting.results import Metrics, Result
from npas.reporting.tables import Cell, Row

Make = Callable[..., Result]

TASK = {"phases": [5, 10, 15], "phase_epochs": 2}
# After six epochs, two a phase, on three bands.
F1 = {
    5: [50.0, 60.0, 70.0, 80.0, 90.0, 91.0],
    10: [30.0, 40.0, 60.0, 70.0, 80.0, 81.0],
    15: [10.0, 20.0, 30.0, 40.0, 60.0, 71.0],
}


@pytest.fixture
def run(make_result: Make) -> Callable[..., Result]:
    def make(add: float = 0.0, **changes: Any) -> Result:
        history: dict[str, list[Any]] = {"epoch": [1, 2, 3, 4, 5, 6]}
        history |= {f"val/f1_{band}": [f1 + add for f1 in column] for band, column in F1.items()}
        config = {"task": TASK, "epochs": 6}
        values = {"metrics": Metrics({"f1": 80.0}), "config": config, "history": history}
        return make_result(**{**values, **changes})

    return make


def cells(**networks: list[Result]) -> list[Cell]:
    return [Cell(Row(name, ()), dict(enumerate(runs))) for name, runs in networks.items()]


def test_a_run_is_read_by_phase_and_band(run: Callable[..., Result]) -> None:
    read = curriculum.read(run())
    assert [read.phase(epoch) for epoch in range(1, 7)] == [0, 0, 1, 1, 2, 2]
    assert [read.last_epoch(phase) for phase in range(3)] == [2, 4, 6]
    assert [read.current(epoch) for epoch in range(1, 7)] == [50, 60, 60, 70, 60, 71]
    assert [read.later(epoch) for epoch in range(1, 7)] == [20, 30, 30, 40, None, None]


def test_what_comes_after_the_last_phase_is_of_it(run: Callable[..., Result]) -> None:
    assert curriculum.read(run()).phase(9) == 2


def test_the_last_epoch_of_a_phase_is_the_last_that_was_measured(
    run: Callable[..., Result],
) -> None:
    history = {"epoch": [1, 3], **{f"val/f1_{band}": [1.0, 2.0] for band in F1}}
    read = curriculum.read(run(history=history))
    assert [read.last_epoch(phase) for phase in range(3)] == [1, 3, None]


def test_each_phase_has_a_line_a_network_with_its_own_and_later_bands(
    run: Callable[..., Result],
) -> None:
    lines = curriculum.appendix(cells(CNN=[run()], SCNN=[run(), run(2.0)], none=[]))
    assert (
        "| trained up to | network | 1 to 5 moves | 6 to 10 moves | 11 to 15 moves | n |" in lines
    )
    assert lines[-7:] == [
        "| 5 | CNN | **60.00** | 40.00 | 20.00 | 1 |",
        "| 5 | SCNN | **61.00 ± 1.41** | 41.00 ± 1.41 | 21.00 ± 1.41 | 2 |",
        "| 10 | CNN |  | **70.00** | 40.00 | 1 |",
        "| 10 | SCNN |  | **71.00 ± 1.41** | 41.00 ± 1.41 | 2 |",
        "| 15 | CNN |  |  | **71.00** | 1 |",
        "| 15 | SCNN |  |  | **72.00 ± 1.41** | 2 |",
        "",
    ]


def test_the_plot_states_n_and_the_phases(run: Callable[..., Result], tmp_path: Path) -> None:
    import matplotlib as mpl

    networks = cells(CNN=[run()], SCNN=[run(), run(2.0)])
    with mpl.rc_context({"svg.fonttype": "none"}):
        png, svg = curriculum.draw(networks, tmp_path / "new" / "curves", "A title")
        text, first = svg.read_text(encoding="utf-8"), png.read_bytes()
        for part in (
            "A title",
            "CNN (n = 1)",
            "SCNN (n = 2)",
            "up to 5 moves",
            "up to 15",
            "later",
        ):
            assert part in text
        curriculum.draw(networks, tmp_path / "new" / "curves", "A title")
    assert png.read_bytes() == first and svg.read_text(encoding="utf-8") == text


def test_runs_that_diverged_are_named(run: Callable[..., Result], tmp_path: Path) -> None:
    import matplotlib as mpl

    gone = run(status="diverged", history=None)
    networks = cells(CNN=[run()], SCNN=[gone, run(), gone])
    assert curriculum.appendix(networks)[-2:] == [
        "Left out, for it diverged: SCNN (seed 0, 2).",
        "",
    ]
    assert "| 5 | SCNN | **60.00** | 40.00 | 20.00 | 1 |" in curriculum.appendix(networks)
    with mpl.rc_context({"svg.fonttype": "none"}):
        _, svg = curriculum.draw(networks, tmp_path / "curves", "A title")
    assert "diverged: SCNN (seed 0, 2)" in svg.read_text(encoding="utf-8")


def test_numbers_that_were_not_finite_leave_a_gap(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    history = {"epoch": [1, 2], **{f"val/f1_{band}": [None, 2.0] for band in F1}}
    found = cells(CNN=[run(history=history)])
    assert curriculum.read(run(history=history)).later(1) is None
    assert "| 5 | CNN | **2.00** | 2.00 | 2.00 | 1 |" in curriculum.appendix(found)
    assert curriculum.draw(found, tmp_path / "curves", "x")


def test_without_runs_nothing_is_said_or_drawn(run: Callable[..., Result], tmp_path: Path) -> None:
    for nothing in (cells(CNN=[], SCNN=[]), cells(CNN=[run(status="diverged", history=None)])):
        assert curriculum.appendix(nothing) == []
        assert curriculum.draw(nothing, tmp_path / "curves", "x") == []
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_history_is_named(run: Callable[..., Result]) -> None:
    with pytest.raises(ValueError, match="digits with seed 0 has no history of every band"):
        curriculum.appendix(cells(CNN=[run(history=None)]))


def test_without_matplotlib_a_warning_is_all(
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert curriculum.draw(cells(CNN=[run()]), tmp_path / "curves", "x") == []
    assert len(caplog.records) == 1 and "pip install" in caplog.text
    assert not list(tmp_path.iterdir())
