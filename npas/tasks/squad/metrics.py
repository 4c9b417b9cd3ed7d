"""The official metrics of SQuAD: exact match and F1 of words.

Rajpurkar et al. (2016, arXiv 1606.05250), and for questions without an answer Rajpurkar, Jia &
Liang (2018, arXiv 1806.03822). Case, punctuation, articles and white space are ignored. A
question's score is the best over its annotators.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Return the normalized words of a text."""
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def f1(answer: str, gold: str, version: str = "2.0") -> float:
    """Return the F1 of an answer's words, 0 to 1; of two empty texts, 1 in 2.0 and 0 in 1.1."""
    own, true = words(answer), words(gold)
    if version != "1.1" and not (own and true):
        return float(own == true)
    common = sum((Counter(own) & Counter(true)).values())
    return 2 * common / (len(own) + len(true)) if common else 0.0


def score(answer: str, golds: Sequence[str], version: str) -> tuple[float, float]:
    """Return exact match and F1 of an answer; `golds` are the true answers, in 2.0 maybe none."""
    if version != "1.1":
        golds = [gold for gold in golds if words(gold)] or [""]
    return (
        max(float(words(answer) == words(gold)) for gold in golds),
        max(f1(answer, gold, version) for gold in golds),
    )


def best_threshold(
    doubt_Q: np.ndarray, gain_Q: np.ndarray, unanswerable: int
) -> tuple[float, float]:
    """Return the best mean score in percent, and the lowest threshold on the doubt that gives it.

    Questions with a doubt up to the threshold are answered. `gain_Q` is the score of an answer
    minus that of none, which is 1 for the `unanswerable` questions. The threshold is 0 if answering
    no question is best.
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
    """Return the metrics over all questions, in percent.

    1.1: `f1` and `em`. 2.0: the same with threshold 0 on the doubt; `best_f1` and `best_em` with
    thresholds chosen on these questions, as in BERT's published figures; `threshold`, the one of
    F1; and F1 at threshold 0 over questions with and without an answer.
    """
    scores_Q2 = np.array([score(*pair, version) for pair in zip(texts, golds, strict=True)])
    doubt_Q = np.array(doubts)
    has_Q = np.array([bool(gold) for gold in golds])
    # Giving no answer scores 1 on questions that have none, and 0 on the others.
    is_given_Q = (doubt_Q <= 0) | (version == "1.1")
    now_Q2 = np.where(is_given_Q[:, None], scores_Q2, (~has_Q)[:, None].astype(float))
    em, mean = (100 * now_Q2.mean(0)).tolist()
    found = {"f1": mean, "em": em}
    if version == "1.1":
        return found
    # Giving an answer loses 1 on questions that have none, unless it is empty.
    loss_Q = -np.array([bool(text) for text in texts], float)
    gain_Q2 = np.where(has_Q[:, None], scores_Q2, loss_Q[:, None])
    none = int((~has_Q).sum())
    found["best_f1"], threshold = best_threshold(doubt_Q, gain_Q2[:, 1], none)
    found["best_em"], _ = best_threshold(doubt_Q, gain_Q2[:, 0], none)
    found["threshold"] = threshold
    for name, part_Q in (("has_answer_f1", has_Q), ("no_answer_f1", ~has_Q)):
        if part_Q.any():
            found[name] = float(100 * now_Q2[part_Q, 1].mean())
    return found
