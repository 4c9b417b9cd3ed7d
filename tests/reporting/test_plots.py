"""Plots label every series, and the same data give the same files."""

import logging
import random
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from npas.reporting import curriculum, fold_plots, plots
from npas.reporting.tables import Cell, Row, Table
from npas.training.grouping import Grouping


def similarity(group, layers, apart=False):
    rng = random.Random(layers)
    matrix = [[rng.random() for _ in range(layers)] for _ in range(layers)]
    if apart:
        matrix[0][-1] = matrix[-1][0] = None
    names = [f"stages.1.{i // 2}.conv{i % 2 + 1}.weight" for i in range(layers)]
    return {"group": group, "layers": names, "matrix": matrix}


def loop(container, *names, period=1, own=0):
    times = len(names) // period
    return dict(container=container, blocks=[*names], period=period, times=times, own=own)


def grouping(layers, groups, size=4, method="learned"):
    rng = np.random.default_rng(0)
    names = [f"stages.{i}.conv.weight" for i in range(layers)]
    members = {name: f"{method}{i % groups}" for i, name in enumerate(names)}
    vectors = {name: rng.normal(size=size).tolist() for name in names}
    return Grouping(method, 0, groups, 1, 5, 1.0, None, members, vectors)


SIMILAR = [similarity("early", 4), similarity("late", 6, apart=True), similarity("lonely", 1)]
BLOCKS = [
    loop("stages.0", "0"),
    loop("stages.0", "1", "2", "3", own=1384),
    loop("stages.1", "0"),
    loop("stages.1", "1", "2", "3", "4", period=2, own=512),
    loop("stages.2", "0"),
    loop("stages.2", "1"),
]
DENSE, SHARED = ("+exp=digits", "budget=dense"), ("+exp=digits", "budget=0.1")
TABLE = Table(
    "tiny", "A title", (Row("dense", DENSE, "dense"), Row("SSN", SHARED, "SSN")), "A note."
)


@pytest.fixture
def cells(make_result):
    """Return what is known of two networks: a done run of the first, two of the second."""
    shared = {seed: make_result(95.0 + seed, used=100) for seed in (0, 1)}
    return [Cell(TABLE.rows[0], {0: make_result()}), Cell(TABLE.rows[1], shared)]


def test_the_same_data_give_the_same_files(cells, tmp_path):
    stem = tmp_path / "new" / "plot"
    png, svg = plots.against_parameters(TABLE, cells, stem)
    first = png.read_bytes(), svg.read_bytes()
    assert first[0].startswith(b"\x89PNG") and b"<svg" in first[1]
    assert [png, svg] == [stem.with_suffix(f".{kind}") for kind in ("png", "svg")]
    assert plots.against_parameters(TABLE, cells, stem) == [png, svg]
    assert (png.read_bytes(), svg.read_bytes()) == first


KINDS = {  # a small plot of each
    "parameters": lambda stem, cells: plots.against_parameters(TABLE, cells, stem),
    "groups": lambda stem, _: plots.groups(grouping(6, 3), stem.parent),
    "similarity": lambda stem, _: fold_plots.similarity(SIMILAR[:2], stem, "A title"),
    "epochs": lambda stem, _: fold_plots.similarity_over_epochs([(1, SIMILAR)], stem, "A title"),
    "folded": lambda stem, _: fold_plots.folded(BLOCKS, stem, "A title"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_matplotlib_a_warning_is_all(kind, cells, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(plots, "available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert KINDS[kind](tmp_path / "plot", cells) == []
    assert len(caplog.records) == 1 and "pip install" in caplog.text
    assert not list(tmp_path.iterdir())


def test_without_data_nothing_is_drawn(tmp_path, make_result):
    stem, lonely = tmp_path / "x", [similarity("lonely", 1)]
    diverged = Cell(TABLE.rows[0], {0: make_result(status="diverged")})
    for drawn in (
        plots.against_parameters(TABLE, [Cell(row, {}) for row in TABLE.rows], stem),
        plots.against_parameters(TABLE, [diverged], stem),
        curriculum.draw(TABLE, [diverged], stem),
        fold_plots.similarity(lonely, stem, "x"),
        fold_plots.similarity_over_epochs([(1, lonely)], stem, "x"),
        fold_plots.similarity_over_epochs([], stem, "x"),
        fold_plots.folded([], stem, "x"),
    ):
        assert drawn == []
    assert not list(tmp_path.iterdir())


class Written(Exception):
    """Carries the words of a plot."""


@pytest.fixture
def words(monkeypatch, tmp_path):
    """Return a function that draws, and returns what is written in the plot; no file is made."""

    def read(draw, *arguments):
        from matplotlib.figure import Figure
        from matplotlib.text import Text

        def draw_nothing(stem, salt, size, paint, layout=None):
            figure = Figure(figsize=size)
            paint(figure)
            found = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
            raise Written("\n".join(found))

        monkeypatch.setattr(plots, "draw", draw_nothing)
        with pytest.raises(Written) as written:
            draw(*arguments)
        return str(written.value)

    return read


def test_series_heights_and_diverged_networks_are_named(cells, words, make_result):
    draw, stem = plots.against_parameters, Path("x")
    text = words(draw, TABLE, cells, stem)
    assert all(part in text for part in ("A title", TABLE.heading, "SSN", "trainable parameters"))
    assert "diverged" not in text
    gone = Cell(Row("all", SHARED, "all"), {0: make_result(used=500, status="diverged")})
    text = words(draw, TABLE, [*cells, gone], stem)
    # One budget each: who is compared stands along the axis.
    assert "diverged" in text and "all\n500" in text and "and trainable parameters" in text


def test_bytes_stand_beside_parameters(words, cells, make_result):
    exported = {seed: make_result(artifact=Mock(bytes=size)) for seed, size in enumerate((9, 12))}
    cells = [*cells, Cell(TABLE.rows[0], exported)]
    assert [cell.artifact_bytes() for cell in cells] == [None, None, 10]
    text = words(plots.against_bytes_too, TABLE, cells, Path("x"))
    assert "trainable parameters" in text and "bytes of the artifact" in text
    assert text.count("A title") == 1


def test_layers_are_named_and_what_cannot_be_compared_is_said(words):
    text = words(fold_plots.similarity, SIMILAR, Path("x"), "A title")
    assert all(name in text for name in ("2.conv2", "early: 4 layers of stages.1", "late"))
    assert "lonely" not in text and "grey: the two mix different templates" in text
    assert "grey" not in words(fold_plots.similarity, SIMILAR[:1], Path("x"), "A title")
    unlike = {"group": "g", "layers": ["a.weight", "b"], "matrix": [[1.0, 0.5], [0.5, 1.0]]}
    assert "g: 2 layers" in words(fold_plots.similarity, [unlike], Path("x"), "x")


def test_loops_and_blocks_are_written(words):
    text = words(fold_plots.folded, BLOCKS, Path("x"), "A title")
    times = "\N{MULTIPLICATION SIGN}"
    for part in (
        *("A title", f"{times}3", f"{times}2", "1 = 2 = 3", "1 = 3", "2 = 4", "4 blocks"),
        *("for each of 3, 1,384 in all", "for each of 2, 512 in all"),
    ):
        assert part in text, part
    assert text.count(" left") == 2  # of the containers that have become shorter
    assert text.count("own norms, biases, statistics") == 2


MANY = [loop("b", str(i)) for i in range(33)]


@pytest.mark.parametrize(
    ("draw", "data"),
    [
        (plots.groups, [grouping(1, 1)]),
        (plots.groups, [grouping(13, 13)]),
        (plots.groups, [grouping(5, 2, 5, "gradient")]),
        (fold_plots.similarity, [[similarity(f"g{i}", 2) for i in range(13)]]),
        (fold_plots.similarity, [[similarity("g", 30)]]),
        (fold_plots.folded, [MANY]),
        (fold_plots.folded, [[loop("b", *map(str, range(30)), period=15, own=9)]]),
    ],
)
def test_any_network_can_be_drawn(draw, data, words):
    title = () if draw is plots.groups else ("A title",)
    assert words(draw, *data, Path("x"), *title)
