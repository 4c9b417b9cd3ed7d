"""Score answers by the official rules of SQuAD: exact match and F1 of words, over the questions.

Rajpurkar et al. (2016, arXiv 1606.05250), and for questions without an answer Rajpurkar, Jia &
Liang (2018, arXiv 1806.03822). Case, punctuation, articles and spaces do not count. A question
scores by the annotator who agrees most.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Return the words that count."""
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def f1(answer: str, gold: str, version: str = "2.0") -> float:
    """Return the harmonic mean of precision and recall of an answer's words, 0 to 1.

    Two texts without words are equal in 2.0, and have nothing in common in 1.1.
    """
    own, true = words(answer), words(gold)
    if version != "1.1" and not (own and true):
        return float(own == true)
    common = sum((Counter(own) & Counter(true)).values())
    return 2 * common / (len(own) + len(true)) if common else 0.0


def score(answer: str, golds: Sequence[str], version: str) -> tuple[float, float]:
    """Return exact match and F1 of an answer to a question with these true ones; 2.0: or none."""
    if version != "1.1":
        golds = [gold for gold in golds if words(gold)] or [""]
    return (
        max(float(words(answer) == words(gold)) for gold in golds),
        max(f1(answer, gold, version) for gold in golds),
    )


def best_threshold(
    doubt_Q: np.ndarray, gain_Q: np.ndarray, unanswerable: int
) -> tuple[float, float]:
    """Return the best mean score in percent, and up to which doubt an answer is given for it.

    Questions are answered one more at a time, the surest first. `gain_Q` is what an answer is worth
    more than none: no answer is worth 1 to each of the `unanswerable` ones. Of equals the lowest
    threshold, and 0 if no answer at all is best.
    """
    order_Q = np.argsort(doubt_Q, kind="stable")
    total_Q = unanswerable + np.cumsum(gain_Q[order_Q])
    best = int(total_Q.argmax())
    if total_Q[best] <= unanswerable:
        return 100.0 * unanswerable / len(doubt_Q), 0.0
    return 100.0 * float(total_Q[best]) / len(doubt_Q), float(doubt_Q[order_Q[best]])


def summarize(
    texts: Sequence[str], doubts: Sequence[float], golds: Sequence[Sequence[str]], version: str
) -> dict[str, float]:
    """Return the figures of one evaluation in percent, over all questions.

    1.1: `f1` and `em`. 2.0: the same with an answer given where the doubt is at most 0; then
    `best_f1` and `best_em`, each with the threshold chosen on these very questions, as published
    figures of BERT's kind are, the one of F1 as `threshold`; and F1 at threshold 0 over the
    questions with and without an answer.
    """
    scores_Q2 = np.array([score(*pair, version) for pair in zip(texts, golds, strict=True)])
    doubt_Q = np.array(doubts)
    has_Q = np.array([bool(gold) for gold in golds])
    # Without an answer that is right for the questions that have none, and wrong for the others.
    is_given_Q = (doubt_Q <= 0) | (version == "1.1")
    now_Q2 = np.where(is_given_Q[:, None], scores_Q2, (~has_Q)[:, None].astype(float))
    em, mean = (100 * now_Q2.mean(0)).tolist()
    found = {"f1": mean, "em": em}
    if version == "1.1":
        return found
    # An answer is wrong for them, unless it is empty after all.
    lost_Q = -np.array([bool(text) for text in texts], float)
    gain_Q2 = np.where(has_Q[:, None], scores_Q2, lost_Q[:, None])
    none = int((~has_Q).sum())
    found["best_f1"], threshold = best_threshold(doubt_Q, gain_Q2[:, 1], none)
    found["best_em"], _ = best_threshold(doubt_Q, gain_Q2[:, 0], none)
    found["threshold"] = threshold
    for name, part_Q in (("has_answer_f1", has_Q), ("no_answer_f1", ~has_Q)):
        if part_Q.any():
            found[name] = float(100 * now_Q2[part_Q, 1].mean())
    return found
