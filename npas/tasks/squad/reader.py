"""Read the official JSON files of SQuAD 1.1 and 2.0 into questions.

    {"version": "1.1", "data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": 0}, ...],
         "is_impossible": false}]}]}]}

`is_impossible` is of 2.0, whose questions without an answer have an empty list of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """One question; all questions of a paragraph have the same `context` object.

    `answers` are those of all annotators, none if it cannot be answered. The first one's text is
    what training points to, at character `start`: None if there is none, or if it is not there.
    """

    id: str
    article: int  # counted through the file
    context: str
    text: str
    answers: tuple[str, ...]
    start: int | None


def read(path: Path, version: str) -> list[Question]:
    """Read a file. ValueError, one line that names the file and the place, if it is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file ({error}): get it again") from error
    try:
        found = list(_questions(raw, version))
    except _Malformed as error:
        raise ValueError(f"{path} is no SQuAD file: {error}") from None
    if not found:
        raise ValueError(f"{path} holds no question")
    if len({question.id for question in found}) < len(found):
        raise ValueError(f"{path} is no SQuAD file: some questions have the same id")
    return found


class _Malformed(Exception):
    """What is missing where."""


def _get(node: Any, key: str, kind: type, where: str) -> Any:
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise _Malformed(f"{where} has no {key!r} that is a {kind.__name__}")
    return value


def _questions(raw: Any, version: str) -> Iterator[Question]:
    for a, article in enumerate(_get(raw, "data", list, "it")):
        for p, paragraph in enumerate(_get(article, "paragraphs", list, f"article {a}")):
            where = f"paragraph {p} of article {a}"
            context = _get(paragraph, "context", str, where)
            for q, entry in enumerate(_get(paragraph, "qas", list, where)):
                yield _question(entry, a, context, version, f"question {q} of {where}")


def _question(entry: Any, article: int, context: str, version: str, where: str) -> Question:
    name = _get(entry, "id", str, where)
    text = _get(entry, "question", str, where)
    answers = [
        (_get(answer, "text", str, where), _get(answer, "answer_start", int, where))
        for answer in _get(entry, "answers", list, where)
    ]
    if "is_impossible" in entry and _get(entry, "is_impossible", bool, where):
        answers = []
    if not answers and version == "1.1":
        raise _Malformed(f"{where} ({name}) has no answer, and SQuAD 1.1 has one to each")
    start = find_answer(context, *answers[0]) if answers else None
    return Question(name, article, context, text, tuple(text for text, _ in answers), start)


def find_answer(context: str, text: str, start: int) -> int | None:
    """Return where the answer is: within the words that lie where it should be, or None.

    BERT's own reader looks there, too: some answers start a few characters off.
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
