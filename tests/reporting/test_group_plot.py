"""The picture of found groups: made of the grouping alone, and of any grouping."""

import logging
from pathlib import Path

import numpy as np
import pytest

from npas.reporting import group_plot, plots
from npas.training.grouping import Grouping


def grouping(layers: int, groups: int, size: int = 4, method: str = "learned") -> Grouping:
    rng = np.random.default_rng(0)
    names = [f"stages.{i}.conv.weight" for i in range(layers)]
    return Grouping(
        method=method,
        seed=0,
        num_groups=groups,
        epochs=1,
        steps=5,
        wall_s=1.0,
        half_agreement=None,
        groups={name: f"{method}{i % groups}" for i, name in enumerate(names)},
        vectors={name: rng.normal(size=size).tolist() for name in names},
    )


def test_the_same_groups_give_the_same_picture(tmp_path: Path) -> None:
    paths = group_plot.draw(grouping(6, 3), tmp_path)
    assert [path.name for path in paths] == ["groups.png", "groups.svg"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG") and b"<svg" in first[1]
    group_plot.draw(grouping(6, 3), tmp_path)
    assert [path.read_bytes() for path in paths] == first


@pytest.mark.parametrize(
    "found",
    [grouping(1, 1), grouping(2, 1, size=1), grouping(40, 13), grouping(5, 2, 5, "gradient")],
    ids=["one layer", "one number", "many groups", "gradient"],
)
def test_any_grouping_can_be_drawn(tmp_path: Path, found: Grouping) -> None:
    assert all(path.exists() for path in group_plot.draw(found, tmp_path))


def test_without_matplotlib_a_warning_is_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert group_plot.draw(grouping(3, 2), tmp_path) == []
    assert len(caplog.records) == 1 and "pip install" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_components_keep_what_two_dimensions_hold() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(9, 2)) @ rng.normal(size=(2, 5))
    points, shares = group_plot.principal_components(plane)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    assert np.allclose(np.linalg.norm(points[:, None] - points[None], axis=-1), distances)
    assert sum(shares) == pytest.approx(1) and shares[0] >= shares[1]
    flat, none = group_plot.principal_components(np.ones((3, 1)))
    assert not flat.any() and none == (0, 0)
