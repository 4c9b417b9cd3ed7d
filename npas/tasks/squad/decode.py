"""Read answers off the logits of a network, the n best of a question, much as BERT does.

The score of a stretch of the paragraph is the logit of its first token as a start plus that of its
last as an end. The score of having no answer is that of the stretch that is [CLS] alone, the lowest
over the question's windows. Two things are not BERT's. A text is cut out of the paragraph by the
tokens' places in it, with the combining marks behind the last one, which a tokenizer that strips
accents has left out; where BERT's reader cannot find its tokens there again, it takes the whole
words. And the n likeliest starts and ends are taken among the places that an answer may have;
BERT's reader takes them among all places of the window, and then leaves out what cannot be, so that
fewer than n may remain.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from npas.tasks.squad.windows import Features


@dataclass(frozen=True)
class Answers:
    """One question's answers: the best first, each text once, and the score of having none."""

    question: int
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    none: float

    @property
    def text(self) -> str:
        """Return the best answer that is one; empty if no stretch could be."""
        return self.texts[0] if self.texts else ""

    @property
    def doubt(self) -> float:
        """Return by how much having no answer scores better than the best one."""
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

    Of each window the `n_best` likeliest starts and ends are combined, to answers of at most
    `max_answer` tokens.
    """
    place_L = np.arange(features.ids_NL.shape[1])
    for question, rows in groupby(range(len(features)), lambda n: int(features.question_N[n])):
        found: list[tuple[float, int, int]] = []
        none = float("inf")
        for n in rows:
            none = min(none, float(start_NL[n, 0]) + float(end_NL[n, 0]))
            may_start_L = features.may_start_NL[n]
            may_end_L = (place_L >= features.second_N[n]) & (place_L < features.length_N[n] - 1)
            places = spans(start_NL[n], end_NL[n], may_start_L, may_end_L, n_best, max_answer)
            for score, start, end in places:
                first, last = features.spans_NL2[n, start, 0], features.spans_NL2[n, end, 1]
                found.append((score, int(first), int(last)))
        # Of equals the one found first; sorting keeps their order.
        found.sort(key=lambda entry: -entry[0])
        best: dict[str, float] = {}
        context = contexts[question]
        for score, first, last in found:
            if text := context[first : _with_marks(context, last)].strip():
                best.setdefault(text, score)
            if len(best) == n_best:
                break
        yield Answers(question, tuple(best), tuple(best.values()), none)


def _with_marks(text: str, end: int) -> int:
    """Return the end of a stretch that is not to part a letter from its combining marks."""
    while end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return end


def spans(
    start_L: np.ndarray,
    end_L: np.ndarray,
    may_start_L: np.ndarray,
    may_end_L: np.ndarray,
    n_best: int,
    max_answer: int,
) -> list[tuple[float, int, int]]:
    """Return score, first and last token of every stretch made of the likeliest starts and ends."""
    start_S = _best(start_L, may_start_L, n_best)
    end_E = _best(end_L, may_end_L, n_best)
    length_SE = end_E[None] - start_S[:, None] + 1
    score_SE = start_L[start_S, None].astype(np.float64) + end_L[None, end_E]
    return [
        (float(score_SE[s, e]), int(start_S[s]), int(end_E[e]))
        for s, e in zip(*np.nonzero((length_SE >= 1) & (length_SE <= max_answer)), strict=True)
    ]


def _best(logits_L: np.ndarray, allowed_L: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` allowed places with the highest logits, the highest first.

    Unlike BERT's reader, which leaves out what is not allowed after it has taken so many.
    """
    places = np.nonzero(allowed_L)[0]
    return places[np.argsort(-logits_L[places], kind="stable")[:count]]
