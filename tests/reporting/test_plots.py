"""Plots come from result files alone, and the same results give the same files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from npas.reporting import plots, tables
from npas.reporting.tables import Row, Table

TABLE = Table(
    name="tiny",
    title="A title",
    rows=(
        Row("dense", ("+exp=digits", "budget=dense"), "dense"),
        Row("SSN", ("+exp=digits", "budget=0.1"), "SSN"),
    ),
    note="A note.",
)


def test_a_plot_is_written_as_png_and_svg(tmp_path: Path, keep: Callable[..., Path]) -> None:
    keep(tmp_path, "+exp=digits", "budget=dense")
    for seed in (0, 1):
        keep(tmp_path, "+exp=digits", "budget=0.1", seed=seed, used=100, accuracy=95.0 + seed)
    cells = tables.load(TABLE, tmp_path)
    paths = plots.accuracy_against_parameters(TABLE, cells, tmp_path / "plots" / "tiny")
    assert [path.name for path in paths] == ["tiny.png", "tiny.svg"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG")
    assert b"<svg" in first[1]
    plots.accuracy_against_parameters(TABLE, cells, tmp_path / "plots" / "tiny")
    assert [path.read_bytes() for path in paths] == first


def test_at_one_budget_the_series_stand_side_by_side(
    tmp_path: Path, keep: Callable[..., Path]
) -> None:
    rows = tuple(
        Row(groups, ("+exp=digits", "budget=0.1", f"sharing.groups={groups}"), groups)
        for groups in ("single", "type", "shape")
    )
    for row in rows:
        assert row.words is not None
        keep(tmp_path, *row.words)
    table = dataclasses.replace(TABLE, rows=rows)
    png, svg = plots.accuracy_against_parameters(
        table, tables.load(table, tmp_path), tmp_path / "x"
    )
    assert png.exists() and "and trainable parameters" in svg.read_text()


@pytest.mark.parametrize("budgets", [("0.1", "0.5"), ("0.1", "0.1")])
def test_networks_that_diverged_are_in_the_plot(
    tmp_path: Path, keep: Callable[..., Path], budgets: tuple[str, str]
) -> None:
    import matplotlib as mpl

    first, second = (f"budget={budget}" for budget in budgets)
    rows = (
        Row("dense", ("+exp=digits", "budget=dense"), "dense"),
        Row("some", ("+exp=digits", first, "sharing.groups=type"), "some"),
        Row("all", ("+exp=digits", second, "sharing.groups=shape"), "all"),
    )
    keep(tmp_path, *rows[0].words)
    keep(tmp_path, *rows[1].words, seed=0, used=100)
    table = dataclasses.replace(TABLE, rows=rows)

    def draw() -> str:
        cells = tables.load(table, tmp_path)
        with mpl.rc_context({"svg.fonttype": "none"}):
            _, svg = plots.accuracy_against_parameters(table, cells, tmp_path / "x")
        return svg.read_text()

    assert "diverged" not in draw()
    keep(tmp_path, *rows[1].words, seed=1, used=100, status="diverged")
    keep(tmp_path, *rows[2].words, seed=0, used=500, status="diverged")
    text = draw()
    assert "diverged" in text and ">all<" in text.replace("\n", "")


def test_a_plot_of_nothing_but_diverged_runs_is_not_drawn(
    tmp_path: Path, keep: Callable[..., Path]
) -> None:
    keep(tmp_path / "runs", "+exp=digits", "budget=dense", status="diverged")
    cells = tables.load(TABLE, tmp_path / "runs")
    assert plots.accuracy_against_parameters(TABLE, cells, tmp_path / "x") == []


def test_without_results_there_is_no_plot(tmp_path: Path) -> None:
    assert plots.accuracy_against_parameters(TABLE, tables.fill(TABLE, []), tmp_path / "x") == []
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    with pytest.raises(ValueError, match="pip install 'npas\\[plots\\]'"):
        plots.accuracy_against_parameters(TABLE, tables.fill(TABLE, []), tmp_path / "x")
