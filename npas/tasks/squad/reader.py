"""Read the official JSON files of SQuAD 1.1 and 2.0 into questions.

    {"version": "1.1", "data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": 0}, ...],
         "is_impossible": false}]}]}]}

`is_impossible` is in 2.0 only, where questions without an answer have an empty list of answers.
"""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npas.utils.files import reading


@dataclass(frozen=True)
class Question:
    """One question; all questions of a paragraph share the `context` object.

    `answers` are those of all annotators, () if the question has none. The first one is the
    training target, at character `start`; None if there is none, or it is not found there.
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
    """Return an object's field. Raises ValueError if it is missing or of another type."""
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
