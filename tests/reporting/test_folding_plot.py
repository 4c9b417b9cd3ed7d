"""A folded network's drawing says which block loops, how often, and what iterations keep."""

import logging
from pathlib import Path
from typing import Any

import pytest

from npas.reporting import folding_plot, plots


def entry(container: str, *names: str, period: int = 1, own: int = 0) -> dict[str, Any]:
    times = len(names) // period
    return {
        "container": container, "blocks": [*names], "period": period, "times": times, "own": own
    }  # fmt: skip


BLOCKS = [
    entry("stages.0", "0"),
    entry("stages.0", "1", "2", "3", own=1384),
    entry("stages.1", "0"),
    entry("stages.1", "1", "2", "3", "4", period=2, own=512),
    entry("stages.2", "0"),
    entry("stages.2", "1"),
]
LOOPED = [
    ["stages.0.1.conv1.weight", "stages.0.2.conv1.weight", "stages.0.3.conv1.weight"],
    ["stages.1.1.conv2.weight", "stages.1.3.conv2.weight"],
]
OTHERS = [
    ["stages.1.2.conv1.weight", "stages.1.2.conv2.weight"],  # within the block
    ["stages.1.1.conv1.weight", "stages.1.2.conv1.weight"],  # out of step with the period
    ["stages.2.0.conv2.weight", "stages.2.1.conv1.weight"],  # without a loop
]


def text_of(blocks: list[dict[str, Any]], tied: list[list[str]], stem: Path) -> str:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        _, svg = folding_plot.draw(blocks, tied, stem, "A title")
    return svg.read_text(encoding="utf-8")


def test_the_same_network_gives_the_same_drawing(tmp_path: Path) -> None:
    paths = folding_plot.draw(BLOCKS, LOOPED, tmp_path / "new" / "folded", "A title")
    assert [path.name for path in paths] == ["folded.png", "folded.svg"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG")
    folding_plot.draw(BLOCKS, LOOPED, tmp_path / "new" / "folded", "A title")
    assert [path.read_bytes() for path in paths] == first


def test_loops_their_blocks_and_what_iterations_keep_are_written(tmp_path: Path) -> None:
    text = text_of(BLOCKS, LOOPED + OTHERS, tmp_path / "folded")
    for part in (
        "A title", "\N{MULTIPLICATION SIGN}3", "\N{MULTIPLICATION SIGN}2", ">1 = 2 = 3<", ">1 = 3<",
        ">2 = 4<", "for each of 3, 1,384 in all", "for each of 2, 512 in all", "stages.1",
        "one weight: 0.conv2 = 1.conv1",
    ):  # fmt: skip
        assert part in text
    assert text.count(" left<") == 2  # of the containers that have become shorter
    assert text.count("own norms, biases, statistics") == 2
    without = text_of([entry("blocks", "0", "1")], [], tmp_path / "folded")
    assert "own norms" not in without


def test_what_is_tied_outside_of_the_blocks_is_written_too(tmp_path: Path) -> None:
    tied = [["encoder.query.weight", "decoder.query.weight"]]
    for blocks in (BLOCKS, []):
        text = text_of(blocks, tied, tmp_path / "folded")
        assert "elsewhere" in text
        assert "one weight: encoder.query = decoder.query" in text


def test_blocks_are_counted_as_they_run_and_as_they_are_left() -> None:
    assert folding_plot.remaining(BLOCKS) == (11, 7)


def test_what_a_loop_says_already_is_not_said_again() -> None:
    assert folding_plot.unexplained(BLOCKS, LOOPED + OTHERS) == OTHERS
    assert folding_plot.unexplained([entry("", "0", "1")], [["0.weight", "1.weight"]]) == []


@pytest.mark.parametrize(
    ("blocks", "tied"),
    [
        ([entry("", *map(str, range(24)), own=1)], []),
        ([entry("b", str(i)) for i in range(33)], [[f"b.{i}.weight" for i in range(33)]]),
        ([entry("b", *map(str, range(30)), period=15, own=9)], []),
    ],
    ids=["one long loop", "many blocks", "a long period"],
)
def test_any_network_can_be_drawn(
    tmp_path: Path, blocks: list[dict[str, Any]], tied: list[list[str]]
) -> None:
    paths = folding_plot.draw(blocks, tied, tmp_path / "folded", "x")
    assert all(path.exists() for path in paths)


def test_without_blocks_nothing_is_drawn(tmp_path: Path) -> None:
    assert folding_plot.draw([], [], tmp_path / "folded", "x") == []
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_a_warning_is_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert folding_plot.draw(BLOCKS, [], tmp_path / "folded", "x") == []
    assert len(caplog.records) == 1 and "pip install" in caplog.text
    assert not list(tmp_path.iterdir())
