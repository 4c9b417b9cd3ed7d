"""Decode the n best answers to a question, much like BERT, and score them as SQuAD does.

The score of a span is the start logit of its first token plus the end logit of its last. The score
of no answer is that of the span [CLS], the lowest over the question's windows. Two things differ
from BERT's reader. An answer's text is cut from the paragraph by the tokens' offsets, with the
combining marks after it, which a tokenizer that strips accents omits; where BERT's reader cannot
realign its tokens, it takes whole words. And the n best starts and ends are chosen among allowed
positions; BERT's reader chooses among all and then discards invalid ones, which may leave fewer.

The metrics are the official ones, exact match and F1 of words (Rajpurkar et al. 2016, arXiv
1606.05250; Rajpurkar, Jia & Liang 2018, arXiv 1806.03822). Case, punctuation, articles and white
space are ignored. A question's score is the best over its annotators.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from npas.tasks.squad.reader import Features

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answers:
    """One question's answers, best first, without duplicates, and the score of no answer."""

    question: int
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    none: float

    @property
    def text(self) -> str:
        return self.texts[0] if self.texts else ""

    @property
    def doubt(self) -> float:
        """Return the score of no answer minus that of the best answer."""
        return self.none - self.scores[0] if self.scores else float("inf")


def decode(
    features: Features, contexts: list[str], start_NL: np.ndarray, end_NL: np.ndarray, *,
    n_best: int, max_answer: int,
) -> Iterator[Answers]:  # fmt: skip
    """Yield the answers to each question, in order; `contexts` are their paragraphs."""
    position_L = np.arange(features.ids_NL.shape[1])
    for question, rows in groupby(range(len(features)), lambda n: int(features.question_N[n])):
        found: list[tuple[float, int, int]] = []
        none = float("inf")
        for n in rows:
            none = min(none, float(start_NL[n, 0]) + float(end_NL[n, 0]))
            is_after_L = position_L >= features.second_N[n]
            may_end_L = is_after_L & (position_L < features.length_N[n] - 1)
            start_S = _best(start_NL[n], features.may_start_NL[n], n_best)
            end_E = _best(end_NL[n], may_end_L, n_best)
            length_SE = end_E[None] - start_S[:, None] + 1
            score_SE = start_NL[n, start_S, None].astype(np.float64) + end_NL[n, end_E][None]
            pairs = np.argwhere((length_SE >= 1) & (length_SE <= max_answer)).tolist()
            first_S, last_E = features.spans_NL2[n, start_S, 0], features.spans_NL2[n, end_E, 1]
            found += [(float(score_SE[s, e]), int(first_S[s]), int(last_E[e])) for s, e in pairs]
        found.sort(key=lambda entry: -entry[0])  # stable: of equal scores the first one found
        best: dict[str, float] = {}
        context = contexts[question]
        for score, first, last in found:
            while last < len(context) and unicodedata.category(context[last]) == "Mn":
                last += 1  # past the combining marks of its last letter
            if text := context[first:last].strip():
                best.setdefault(text, score)
            if len(best) == n_best:
                break
        yield Answers(question, tuple(best), tuple(best.values()), none)


def _best(logits_L: np.ndarray, allowed_L: np.ndarray, count: int) -> np.ndarray:
    positions = np.nonzero(allowed_L)[0]
    return positions[np.argsort(-logits_L[positions], kind="stable")[:count]]


# --- scores


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

    Questions with a doubt up to the threshold are answered; it is 0 if answering none is best.
    `gain_Q` is the score of an answer minus that of none, which is 1 if `unanswerable`.
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

    1.1: `f1` and `em`. 2.0: the same with threshold 0 on the doubt; `best_f1`, with its
    `threshold`, and `best_em` with thresholds chosen on these questions, as in BERT's published
    figures; and F1 at threshold 0 over questions with and without an answer.
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
