"""Published figures are found by name and carry their source."""

import math

import pytest

from npas.reporting import published


def test_a_row_that_is_not_the_only_one_is_refused():
    for wanted, count in ((("WRN 28-10", "c10"), 2), (("WRN 99-1", "c10"), 0)):
        with pytest.raises(AssertionError, match=f"^{count} rows"):
            published.figure("cifar", *wanted)


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
