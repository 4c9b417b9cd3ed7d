"""Published figures are found by what they are, and carry where they were read."""

from pathlib import Path

import pytest

from npas.reporting import published


def test_a_figure_is_found_with_its_source() -> None:
    plain = published.figure("cifar", "WRN 28-10", "c10", dropout=0.0)
    assert (plain.value, plain.params) == (4.00, 36)
    assert plain.note is not None and "WRN paper" in plain.note
    dropped = published.figure("cifar", "WRN 28-10", "c100", dropout=0.3)
    assert (dropped.value, dropped.note) == (18.85, None)
    assert "poster" in dropped.source
    assert published.figure("squad", "LB-SSN", "squad2_f1").value == 83.0
    searched = published.figure("nas", "NASNet-A", "c10", params=27.6)
    assert (searched.value, searched.gpu_days, dropped.gpu_days) == (2.40, 1800, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifr", "WRN 28-10", "c10"), "did you mean cifar"),
        (("cifar", "WRN 28-10", "c10"), "^2 rows"),
        (("cifar", "WRN 99-1", "c10"), "^0 rows"),
        (("cifar", "WRN 28-10", "top1"), "^0 rows"),
    ],
)
def test_a_figure_that_is_not_there_is_an_error(
    arguments: tuple[str, str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        published.figure(*arguments)


ROW = "name: A, source: poster"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"{ROW}, read: clean", None),
        (f"{ROW}, read: mended, note: why", None),
        ("source: poster, read: clean", "needs a name"),
        (f"{ROW}", "needs read"),
        (f"{ROW}, read: mended", "needs a note"),
        (f"{ROW}, read: clean, note: why", "needs a note"),
        ("name: A, source: rumour, read: clean", "needs a source: one of poster"),
        (f"{ROW}, read: clean, c10: 367", "impossible c10: 367"),
        (f"{ROW}, read: clean, params: -1", "impossible params: -1"),
    ],
)
def test_each_row_is_checked(tmp_path: Path, row: str, message: str | None) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(f"sources: {{poster: a poster}}\nsections: {{s: {{rows: [{{{row}}}]}}}}\n")
    if message is None:
        published.load(path)
    else:
        with pytest.raises(ValueError, match=rf"sections.s.rows\[0\] .*{message}"):
            published.load(path)
