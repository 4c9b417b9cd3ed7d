"""The official files are read, and what is missing in one is a line that says where."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from npas.tasks.squad import reader as reading

CONTEXT = "The Norman dynasty (911\u20131135) ruled in Rouen, Normandy."
OFFICIAL: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "qas": [
                        {
                            "question": "Where did they rule?",
                            "id": "56ddde6b",
                            "answers": [
                                {"text": "Rouen", "answer_start": 39},
                                {"text": "Normandy", "answer_start": 46},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "plausible_answers": [{"text": "Normandy", "answer_start": 46}],
                            "question": "Where did they not rule?",
                            "id": "5ad39d53",
                            "answers": [],
                            "is_impossible": True,
                        },
                    ],
                    "context": CONTEXT,
                }
            ],
        },
        {"title": "Nothing", "paragraphs": []},
    ],
}


def write(folder: Path, raw: Any) -> Path:
    path = folder / "dev.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def test_reads_the_official_form(tmp_path: Path) -> None:
    one, other = reading.read(write(tmp_path, OFFICIAL), "2.0")
    assert (one.id, one.article, one.text) == ("56ddde6b", 0, "Where did they rule?")
    assert one.answers == ("Rouen", "Normandy") and one.start == 39
    assert other.answers == () and other.start is None
    assert one.context is other.context


def test_1_1_has_no_flag_and_an_answer_to_each(tmp_path: Path) -> None:
    raw = copy.deepcopy(OFFICIAL)
    del raw["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"]
    with pytest.raises(ValueError, match=r"question 1 of paragraph 0 .* SQuAD 1\.1 has one"):
        reading.read(write(tmp_path, raw), "1.1")
    del raw["data"][0]["paragraphs"][0]["qas"][1]
    assert len(reading.read(write(tmp_path, raw), "1.1")) == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("data",), "it has no 'data' that is a list"),
        (("data", 1, "paragraphs"), "article 1 has no 'paragraphs'"),
        (("data", 0, "paragraphs", 0, "context"), "paragraph 0 of article 0 has no 'context'"),
        (("data", 0, "paragraphs", 0, "qas", 1, "id"), "question 1 of .* has no 'id'"),
        (("data", 0, "paragraphs", 0, "qas", 0, "question"), "has no 'question' that is a str"),
        (("data", 0, "paragraphs", 0, "qas", 0, "answers", 1, "text"), "question 0 .* no 'text'"),
        (
            ("data", 0, "paragraphs", 0, "qas", 0, "answers", 0, "answer_start"),
            "no 'answer_start' that is a int",
        ),
    ],
)
@pytest.mark.parametrize("value", [None, True], ids=["absent", "of another type"])
def test_a_missing_key_is_one_line(
    path: tuple[Any, ...], said: str, value: Any, tmp_path: Path
) -> None:
    raw = copy.deepcopy(OFFICIAL)
    node: Any = raw
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    if value is not None:
        node[path[-1]] = value
    with pytest.raises(ValueError, match=said) as error:
        reading.read(write(tmp_path, raw), "2.0")
    assert "dev.json is no SQuAD file" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"data": [', "[]", '"data"', '{"data": []}', "\x80"])
def test_what_is_no_such_file_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"dev\.json") as error:
        reading.read(path, "2.0")
    assert "\n" not in str(error.value)


def test_two_questions_of_one_id_are_refused(tmp_path: Path) -> None:
    raw = copy.deepcopy(OFFICIAL)
    questions = raw["data"][0]["paragraphs"][0]["qas"]
    questions[1]["id"] = questions[0]["id"]
    with pytest.raises(ValueError, match="the same id"):
        reading.read(write(tmp_path, raw), "2.0")


@pytest.mark.parametrize(
    ("text", "start", "found"),
    [
        ("Rouen", 39, 39),
        ("Rouen,", 39, 39),
        ("911", 20, 20),
        ("1135", 22, 24),  # within the words that lie there
        ("Normandy", 39, 46),
        ("dynasty", 39, None),
        ("Normandy", -1, None),
        ("Normandy", 1000, None),
        ("  ", 3, None),
        ("", 3, None),
    ],
)
def test_answers_are_looked_for_where_they_should_be(
    text: str, start: int, found: int | None
) -> None:
    assert reading.find_answer(CONTEXT, text, start) == found
