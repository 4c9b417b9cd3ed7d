"""Read the official JSON files of SQuAD, and split paragraphs into windows, as BERT does.

    {"version": "1.1", "data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": 0}, ...],
         "is_impossible": false}]}]}]}

`is_impossible` is in 2.0 only, where questions without an answer have an empty list of answers.

A window is [CLS] question [SEP] part of the paragraph [SEP]. The windows of a long paragraph start
`stride` tokens apart. A token may start an answer only in the window with the most context of it.

Dimensions: N windows of L tokens, W of a question; a paragraph of T tokens.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npas.tasks.common.tokenization import Tokenizer
from npas.utils.files import reading


@dataclass(frozen=True)
class Question:
    """One question; all questions of a paragraph share the `context` object.

    `answers` are those of all annotators. The first one is the training target, at character
    `start`; None if there is none, or it is not found there.
    """

    id: str
    article: int  # index in the file
    context: str
    text: str
    answers: tuple[str, ...]
    start: int | None


def read(path: Path, version: str) -> list[Question]:
    """Read a file; raises ValueError if it is malformed."""
    with reading(path, "give it SQuAD's form (docs/squad.md)"):
        articles = _field(json.loads(path.read_text("utf-8-sig")), "data", list, "the file")
        found = [
            _question(entry, number, _field(paragraph, "context", str, "a paragraph"), version)
            for number, article in enumerate(articles)
            for paragraph in _field(article, "paragraphs", list, f"data[{number}]")
            for entry in _field(paragraph, "qas", list, "a paragraph")
        ]
        if len({question.id for question in found}) < max(1, len(found)):
            raise ValueError("it has no question, or several of the same id")
    return found


def _question(entry: Any, article: int, context: str, version: str) -> Question:
    key = _field(entry, "id", str, "a question")
    where = f"question {key}"
    answers = [
        (_field(answer, "text", str, where), _field(answer, "answer_start", int, where))
        for answer in _field(entry, "answers", list, where)
    ]
    if entry.get("is_impossible"):
        answers = []
    if not answers and version == "1.1":
        raise ValueError(f"{where} has no answer, which SQuAD 1.1 requires")
    start = find_answer(context, *answers[0]) if answers else None
    texts = tuple(text for text, _ in answers)
    return Question(key, article, context, _field(entry, "question", str, where), texts, start)


def _field(entry: Any, name: str, kind: type, where: str) -> Any:
    """Return an object's field; raises ValueError if it is missing or of another type."""
    if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
        kinds = {list: "a list", str: "a string", int: "an integer"}
        raise ValueError(f'{where} needs "{name}", {kinds[kind]}')
    return entry[name]


def content(text: str) -> str:
    """Return a paragraph's letters and digits, by which copies of it are recognized."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def find_answer(context: str, text: str, start: int) -> int | None:
    """Return the answer's start, or the one nearby within the same words; None if not found.

    Some answers of the dataset start a few characters off; BERT's reader corrects these, too.
    """
    if not text.strip() or not 0 <= start < len(context):
        return None
    first, last = start, min(len(context), start + len(text))
    while first > 0 and not context[first - 1].isspace():
        first -= 1
    while last < len(context) and not context[last].isspace():
        last += 1
    found = start if context.startswith(text, start) else context.find(text, first, last)
    return None if found < 0 else found


# --- windows


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens."""

    window: int
    stride: int  # between windows
    question: int  # longer ones are truncated


@dataclass(frozen=True)
class Features:
    """N windows of L tokens, as int32 arrays on the CPU."""

    ids_NL: np.ndarray
    second_N: np.ndarray  # where the paragraph starts in the window
    length_N: np.ndarray  # tokens before the padding
    start_N: np.ndarray  # first token of the answer; 0, [CLS], if it is not in the window
    end_N: np.ndarray  # last token, likewise
    question_N: np.ndarray  # index of the question
    spans_NL2: np.ndarray  # start and end of each token in the paragraph; empty for training
    may_start_NL: np.ndarray  # bool: whether a token may start an answer; empty for training
    left_out: int  # skipped training questions, whose answer is not found

    def __len__(self) -> int:
        return len(self.ids_NL)


def cut(
    questions: Sequence[Question], tokenizer: Tokenizer, lengths: Lengths, *, training: bool
) -> Features:
    """Split all questions; for training, skip those whose answer is not in the paragraph."""
    contexts = list(dict.fromkeys(question.context for question in questions))
    paragraphs = {}  # ids, T, and the start and end of each token in the text, Tx2
    for text, encoded in zip(contexts, tokenizer.encode(contexts), strict=True):
        offsets_T2 = np.array(encoded.offsets, np.int32).reshape(-1, 2)
        paragraphs[text] = np.array(encoded.ids, np.int32), offsets_T2
    asked = tokenizer.encode([question.text for question in questions])
    rows: list[tuple[np.ndarray, ...]] = []
    left_out = 0
    for i, (question, encoded) in enumerate(zip(questions, asked, strict=True)):
        paragraph = paragraphs[question.context]
        answer = _answer(question, paragraph[1])
        if training and question.answers and answer is None:
            left_out += 1
            continue
        words = encoded.ids[: lengths.question]
        rows.append(_windows(i, words, *paragraph, answer, lengths, tokenizer.special, training))
    if not rows:
        raise ValueError("none of the questions has an answer that is in its paragraph")
    columns: list[Any] = [*map(np.concatenate, zip(*rows, strict=True)), left_out]
    return Features(*columns)


def _answer(question: Question, spans_T2: np.ndarray) -> tuple[int, int] | None:
    if question.start is None:
        return None
    end = question.start + len(question.answers[0])
    first = int(np.searchsorted(spans_T2[:, 1], question.start, "right"))
    last = int(np.searchsorted(spans_T2[:, 0], end, "left")) - 1
    return (first, last) if first <= last else None


def _windows(
    index: int, words: Sequence[int], ids_T: np.ndarray, spans_T2: np.ndarray,
    answer: tuple[int, int] | None, lengths: Lengths, special: Mapping[str, int], training: bool,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Split one question's paragraph into W windows; return the arrays of `Features`."""
    second, tokens = len(words) + 2, len(ids_T)
    room = lengths.window - second - 1
    begin_W = np.arange(0, max(1, tokens - room + lengths.stride), lengths.stride, dtype=np.int32)
    count_W = np.minimum(tokens - begin_W, room)
    position_L = np.arange(lengths.window) - second  # in the window's part of the paragraph
    is_shown_WL = (position_L >= 0) & (position_L < count_W[:, None])
    token_S = (begin_W[:, None] + position_L)[is_shown_WL]
    ids_WL = np.full(is_shown_WL.shape, special["pad"], np.int32)
    ids_WL[:, :second] = [special["cls"], *words, special["sep"]]
    ids_WL[is_shown_WL] = ids_T[token_S]
    ids_WL[position_L == count_W[:, None]] = special["sep"]
    answer_W2 = np.zeros((len(begin_W), 2), np.int32)
    if answer is not None:
        inside_W = (begin_W <= answer[0]) & (answer[1] < begin_W + count_W)
        answer_W2[inside_W] = second + np.array(answer) - begin_W[inside_W, None]
    spans_WL2 = np.zeros((0 if training else len(begin_W), lengths.window, 2), np.int32)
    may_start_WL = np.zeros((0, lengths.window), bool)
    if not training:
        spans_WL2[is_shown_WL] = spans_T2[token_S]
        may_start_WL = _may_start(begin_W, count_W, second, lengths.window)
    second_W, index_W = (np.full(len(begin_W), value, np.int32) for value in (second, index))
    length_W = (second + count_W + 1).astype(np.int32)
    return ids_WL, second_W, length_W, *answer_W2.T, index_W, spans_WL2, may_start_WL


def _may_start(begin_W: np.ndarray, count_W: np.ndarray, second: int, length: int) -> np.ndarray:
    """Return whether a token has more context in this window than in any other, WxL."""
    token_T = np.arange(begin_W[-1] + count_W[-1])
    left_WT = token_T - begin_W[:, None]
    right_WT = begin_W[:, None] + count_W[:, None] - 1 - token_T
    # The context is that on the shorter side; ties go to the longer window, then to the first.
    score_WT = np.minimum(left_WT, right_WT) + 0.01 * count_W[:, None]
    score_WT[(left_WT < 0) | (right_WT < 0)] = -np.inf
    may_WL = np.zeros((len(begin_W), length), bool)
    if len(token_T):
        best_T = score_WT.argmax(0)
        may_WL[best_T, second + token_T - begin_W[best_T]] = True
    return may_WL
