"""Layer similarity is drawn of its data alone: every group, every name, the same file each time."""

import logging
import random
from pathlib import Path
from typing import Any

import pytest

from npas.reporting import plots, similarity_plot


def similarity(group: str, layers: int, apart: bool = False) -> dict[str, Any]:
    rng = random.Random(layers)
    matrix: list[list[float | None]] = [
        [rng.random() for _ in range(layers)] for _ in range(layers)
    ]
    if apart:
        matrix[0][-1] = matrix[-1][0] = None
    names = [f"stages.1.{i // 2}.conv{i % 2 + 1}.weight" for i in range(layers)]
    return {"group": group, "layers": names, "matrix": matrix}


GROUPS = [similarity("early", 4), similarity("late", 6, apart=True), similarity("lonely", 1)]


def test_the_same_matrices_give_the_same_picture(tmp_path: Path) -> None:
    paths = similarity_plot.draw(GROUPS, tmp_path / "new" / "lsm", "A title")
    assert [path.name for path in paths] == ["lsm.png", "lsm.svg"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG")
    similarity_plot.draw(GROUPS, tmp_path / "new" / "lsm", "A title")
    assert [path.read_bytes() for path in paths] == first


def test_layers_are_named_and_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        _, svg = similarity_plot.draw(GROUPS, tmp_path / "lsm", "A title")
        text = svg.read_text(encoding="utf-8")
        assert all(name in text for name in ("2.conv2", "early: 4 layers of stages.1", "late"))
        assert "lonely" not in text and "grey: the two mix different templates" in text
        _, svg = similarity_plot.draw(GROUPS[:1], tmp_path / "lsm", "A title")
        assert "grey" not in svg.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([similarity("g", 2)], id="two layers"),
        pytest.param([similarity("g", 30)], id="many layers"),
        pytest.param(
            [similarity(f"g{i}", 3) for i in range(13)], id="many groups", marks=pytest.mark.slow
        ),
    ],
)
def test_any_groups_can_be_drawn(tmp_path: Path, groups: list[dict[str, Any]]) -> None:
    assert all(path.exists() for path in similarity_plot.draw(groups, tmp_path / "lsm", "x"))
    history = [(1, groups), (2, groups)]
    assert all(path.exists() for path in similarity_plot.draw_epochs(history, tmp_path / "strip"))


def test_layers_with_nothing_in_common_keep_their_names(tmp_path: Path) -> None:
    groups = [{"group": "g", "layers": ["a.weight", "b"], "matrix": [[1.0, 0.5], [0.5, 1.0]]}]
    assert similarity_plot.draw(groups, tmp_path / "lsm", "x")


def test_a_strip_shows_epochs_from_the_first_to_the_last(tmp_path: Path) -> None:
    import matplotlib as mpl

    history = [(epoch, GROUPS) for epoch in range(5, 205, 5)]
    with mpl.rc_context({"svg.fonttype": "none"}):
        png, svg = similarity_plot.draw_epochs(history, tmp_path / "strip")
        text = svg.read_text(encoding="utf-8")
    assert text.count(">epoch ") == similarity_plot.MOST_EPOCHS
    assert ">epoch 5<" in text and ">epoch 200<" in text
    first = png.read_bytes()
    assert similarity_plot.draw_epochs(history, tmp_path / "strip")[0].read_bytes() == first


def test_epochs_are_thinned_evenly() -> None:
    assert similarity_plot.thin([1, 2, 3], most=3) == [1, 2, 3]
    assert similarity_plot.thin(list(range(1, 8)), most=3) == [1, 4, 7]
    assert similarity_plot.thin([]) == []


def test_an_epoch_logged_twice_is_shown_as_logged_last(tmp_path: Path) -> None:
    again, once = tmp_path / "again", tmp_path / "once"
    other = [similarity("early", 4), similarity("late", 6)]
    similarity_plot.draw_epochs([(1, GROUPS), (2, GROUPS), (1, other)], again)
    similarity_plot.draw_epochs([(1, other), (2, GROUPS)], once)
    assert again.with_suffix(".png").read_bytes() == once.with_suffix(".png").read_bytes()


def test_where_nothing_is_shared_nothing_is_drawn(tmp_path: Path) -> None:
    assert similarity_plot.draw([similarity("lonely", 1)], tmp_path / "lsm", "x") == []
    assert similarity_plot.draw_epochs([(1, [similarity("lonely", 1)])], tmp_path / "strip") == []
    assert similarity_plot.draw_epochs([], tmp_path / "strip") == []
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_a_warning_is_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert similarity_plot.draw(GROUPS, tmp_path / "lsm", "x") == []
        assert similarity_plot.draw_epochs([(1, GROUPS)], tmp_path / "strip") == []
    assert [record.args for record in caplog.records] == [("lsm.png",), ("strip.png",)]
    assert not list(tmp_path.iterdir())
