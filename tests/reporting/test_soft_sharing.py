"""Every row of the poster is present, with the exact count behind its printed one."""

import json
import math
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from npas.reporting import definitions, published
from npas.reporting.compose import planned_count

ORACLE = Path(__file__).parents[1] / "sharing" / "oracle" / "swrn_counts.json"
KNOWN = {
    (entry["depth"], entry["width"], entry["templates"], entry["classes"]): entry["params"]
    for entry in json.loads(ORACLE.read_text(encoding="utf-8"))
}
LAYERS_OF_A_STAGE = 6  # that share, of depth 28
ROWS = definitions.table("swrn").rows
WITH_WORDS = [row for row in ROWS if row.overrides is not None]


def named(row):
    return f"{row.label} {row.section}"


@pytest.mark.parametrize(
    ("section", "column"),
    [("cifar", "c10"), ("cifar", "c100"), ("imagenet", "top1"), ("imagenet", "top5"),
     ("nas", "c10")],
)  # fmt: skip
def test_every_published_figure_has_its_row(section, column):
    wanted = Counter(
        (entry["name"], entry["params"], entry[column])
        for entry in published.load()["sections"][section]["rows"]
    )
    found = Counter(
        (row.published.name, row.published.params, row.published.value)
        for row in ROWS
        if row.published is not None
    )
    assert wanted <= found


def test_no_row_but_the_published_ones_is_there():
    assert len(ROWS) == 11 + 11 + 4 + 4 + 12
    # What an architecture search has found is no network of ours.
    unmade = [row.label for row in ROWS if row.overrides is None]
    assert len(unmade) == 8 and not any("WRN" in label for label in unmade)


@pytest.mark.slow
@pytest.mark.parametrize("row", WITH_WORDS, ids=named)
def test_the_exact_count_is_what_was_printed_and_the_known_one(row):
    count = planned_count(*row.overrides)
    printed = Decimal(str(row.published.params))
    places = max(0, -int(printed.as_tuple().exponent)) if printed % 1 else 0
    millions = Decimal(count) / 1_000_000
    cut = Decimal(math.floor(millions * 10**places)) / 10**places
    if "ImageNet" in row.section or "WRN" not in row.label:
        assert printed in (cut, round(millions, places))
        return
    assert printed == cut  # the poster cuts these off: 33.54 million are printed as 33
    depth, width, *mixed = map(int, row.published.name.split(" ")[1].split("-"))
    templates = mixed[0] if mixed else LAYERS_OF_A_STAGE * row.label.startswith("SWRN")
    classes = 100 if "CIFAR-100" in row.section else 10
    assert count == KNOWN[depth, width, templates, classes]


def test_the_digits_compare_how_coefficients_start_at_equal_counts():
    counts = {}
    for row in definitions.table("digits_swrn").rows:
        counts.setdefault(row.series, []).append(planned_count(*(row.overrides or ())))
    assert set(counts) == {"dense network", "orthogonal", "sparse", "regularized"}
    assert counts["orthogonal"][1:] == counts["sparse"] == sorted(counts["sparse"])
    assert counts["regularized"] == counts["sparse"][:1]
    assert counts["sparse"][-1] > counts["dense network"][0]  # by the coefficients


def test_the_three_networks_differ_in_sharing_alone():
    rows = definitions.table("shortest_paths_small").rows
    cnn, scnn, scnn_r = (planned_count(*(row.overrides or ())) for row in rows)
    assert scnn == scnn_r < cnn
