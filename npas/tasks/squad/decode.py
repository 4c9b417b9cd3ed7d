"""Decode the n best answers to a question from a network's logits, much like BERT.

The score of a span is the start logit of its first token plus the end logit of its last. The score
of no answer is that of the span [CLS], the lowest over the question's windows. Two things differ
from BERT's reader. An answer's text is cut from the paragraph by the tokens' offsets, with the
combining marks after it, which a tokenizer that strips accents omits; where BERT's reader cannot
realign its tokens, it takes whole words. And the n best starts and ends are chosen among allowed
positions; BERT's reader chooses among all and then discards invalid ones, which may leave fewer.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from npas.tasks.squad.windows import Features


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
    features: Features,
    contexts: list[str],
    start_NL: np.ndarray,
    end_NL: np.ndarray,
    *,
    n_best: int,
    max_answer: int,
) -> Iterator[Answers]:
    """Yield the answers to each question, in order; `contexts` are their paragraphs.

    The `n_best` starts and ends of each window are combined to answers of at most `max_answer`
    tokens.
    """
    position_L = np.arange(features.ids_NL.shape[1])
    for question, rows in groupby(range(len(features)), lambda n: int(features.question_N[n])):
        found: list[tuple[float, int, int]] = []
        none = float("inf")
        for n in rows:
            none = min(none, float(start_NL[n, 0]) + float(end_NL[n, 0]))
            may_end_L = (position_L >= features.second_N[n]) & (
                position_L < features.length_N[n] - 1
            )
            may_start_L, offsets_L2 = features.may_start_NL[n], features.spans_NL2[n]
            found += [
                (score, int(offsets_L2[start, 0]), int(offsets_L2[end, 1]))
                for score, start, end in spans(
                    start_NL[n], end_NL[n], may_start_L, may_end_L, n_best, max_answer
                )
            ]
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


def spans(
    start_L: np.ndarray,
    end_L: np.ndarray,
    may_start_L: np.ndarray,
    may_end_L: np.ndarray,
    n_best: int,
    max_answer: int,
) -> list[tuple[float, int, int]]:
    """Return score, first and last token of all spans from the best starts to the best ends."""
    start_S, end_E = _best(start_L, may_start_L, n_best), _best(end_L, may_end_L, n_best)
    length_SE = end_E[None] - start_S[:, None] + 1
    score_SE = start_L[start_S, None].astype(np.float64) + end_L[None, end_E]
    return [
        (float(score_SE[s, e]), int(start_S[s]), int(end_E[e]))
        for s, e in zip(*np.nonzero((length_SE >= 1) & (length_SE <= max_answer)), strict=True)
    ]


def _best(logits_L: np.ndarray, allowed_L: np.ndarray, count: int) -> np.ndarray:
    positions = np.nonzero(allowed_L)[0]
    return positions[np.argsort(-logits_L[positions], kind="stable")[:count]]
