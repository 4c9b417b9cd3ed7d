"""Scores of answers are the official ones: what other implementations give, case by case.

`squad_scores.json` holds what transformers 4.57 (`squad_metrics`, which 5 dropped) and, for 1.1,
torchmetrics 1.9 give for its questions.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npas.tasks.squad import answers as scores

GOLDEN = json.loads(Path(__file__).with_name("squad_scores.json").read_text(encoding="utf-8"))
NAMES = {
    "f1": "f1", "em": "exact", "best_f1": "best_f1", "best_em": "best_exact",
    "threshold": "best_f1_thresh", "has_answer_f1": "HasAns_f1", "no_answer_f1": "NoAns_f1",
}  # fmt: skip


def test_every_pair_scores_as_transformers_says():
    assert len(GOLDEN["pairs"]) == 300
    for answer, gold, exact, f1 in GOLDEN["pairs"]:
        assert scores.score(answer, [gold], "2.0")[0] == exact, (answer, gold)
        assert scores.f1(answer, gold) == pytest.approx(f1, abs=1e-12), (answer, gold)


@pytest.mark.parametrize("number", range(4))
def test_whole_sets_of_2_0_score_as_transformers_says(number):
    made = GOLDEN["v2"][number]
    texts, golds, doubts = zip(*made["questions"], strict=True)
    found = scores.summarize(texts, doubts, golds, "2.0")
    expected = {ours: made["expected"].get(theirs) for ours, theirs in NAMES.items()}
    expected = {name: value for name, value in expected.items() if value is not None}
    assert found == pytest.approx(expected, abs=1e-9)
    assert set(found) == set(expected)


def test_a_set_of_1_1_scores_as_torchmetrics_says():
    texts, golds = zip(*GOLDEN["v1"]["questions"], strict=True)
    found = scores.summarize(texts, [0.0] * len(texts), golds, "1.1")
    expected = GOLDEN["v1"]["expected"]
    assert found == pytest.approx({"f1": expected["f1"], "em": expected["exact_match"]}, rel=1e-6)


def test_nothing_but_articles_is_equal_in_2_0_and_has_nothing_in_common_in_1_1():
    assert scores.f1("the", "a") == 1 and scores.f1("the", "a", "1.1") == 0
    assert scores.score("the", ["a"], "1.1") == (1, 0)
    assert scores.score("", [], "2.0") == (1, 1)
    assert scores.score("Paris", [], "2.0") == (0, 0)
    assert scores.score("", ["the", "Paris"], "2.0") == (0, 0)  # an empty truth is none


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.booleans(), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=9,
        unique_by=lambda question: question[0],
    )
)
def test_the_threshold_is_the_best_of_all(questions):
    golds = [["Paris now"] if answerable else [] for _, answerable, _ in questions]
    texts = [{0.0: "Rome", 0.5: "Paris is not", 1.0: "Paris now"}[worth] for *_, worth in questions]
    doubts = [float(doubt) for doubt, *_ in questions]
    found = scores.summarize(texts, doubts, golds, "2.0")

    def at(threshold):
        given = [t if d <= threshold else "" for t, d in zip(texts, doubts, strict=True)]
        each = [scores.score(t, g, "2.0")[1] for t, g in zip(given, golds, strict=True)]
        return 100 * float(np.mean(each))

    assert found["f1"] == pytest.approx(at(0))
    assert found["best_f1"] == pytest.approx(max(at(t) for t in (-9, *doubts)))
    if found["best_f1"] > at(-9) + 1e-6:
        assert at(found["threshold"]) == pytest.approx(found["best_f1"])
    else:
        assert found["threshold"] == 0
