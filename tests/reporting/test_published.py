"""Published figures are found by name and carry their source."""

import math

import pytest

from npas.reporting import published


def test_a_figure_is_found_with_its_source():
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
def test_a_missing_figure_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        published.figure(*arguments)


def test_the_file_keeps_its_rules():
    document = published.load()
    assert set(document) == {"sources", "sections"}
    for name, section in document["sections"].items():
        assert set(section) <= {"rows", "claims"}, name
        for claim in section.get("claims", ()):
            assert isinstance(claim["claim"], str) and claim["source"] in document["sources"]
        for row in section.get("rows", ()):
            assert isinstance(row["name"], str) and row["source"] in document["sources"]
            assert row["read"] in ("clean", "mended"), row
            assert (row["read"] == "mended") == ("note" in row), row  # how it was mended
            for key, value in row.items():
                if type(value) in (int, float):
                    most = math.inf if key in ("params", "gflops", "mflops", "gpu_days") else 100
                    assert 0 <= value <= most, row
