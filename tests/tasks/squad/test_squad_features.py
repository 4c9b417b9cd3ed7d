"""Official files are read, and cut into windows that answers can be read off again."""

import copy
import json
from collections import defaultdict

import numpy as np
import pytest
from helpers import one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npas.tasks.common import synthetic_text, tokenization
from npas.tasks.squad import answers, reader
from npas.tasks.squad.reader import Lengths, Question

WORDS = ["born", "Zürich", "(1895)", "xyz", "a", "José's", "New", "Haven.", "—", "1900", "  of"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = synthetic_text.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return tokenization.load_tokenizer(str(folder))


def ask(context, answer, text="Where was Ada born?"):
    start = None if answer is None else context.index(answer)
    return Question("q", 0, context, text, () if answer is None else (answer,), start)


def words_of(features, n, context):
    """List a window's tokens of the paragraph: where each starts, and its text."""
    return [
        (int(start), context[start:end])
        for start, end in features.spans_NL2[n, features.second_N[n] : features.length_N[n] - 1]
    ]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=40),
    st.integers(0, 39),
    st.integers(1, 5),
    st.integers(20, 30),
    st.integers(1, 8),
)
def test_windows_map_back_to_the_paragraph(tokenizer, words, first, many, length, stride):
    context = " ".join(words)
    first = min(first, len(words) - 1)
    answer = " ".join(words[first : first + many])
    start = len(" ".join([*words[:first], ""]))
    question = Question("q", 0, context, "Where was Ada born?", (answer,), start)
    features = reader.cut([question], tokenizer, Lengths(length, stride, 5), training=False)
    whole = tokenizer.inner(context, add_special_tokens=False, return_offsets_mapping=True)
    asked = tokenizer.inner(question.text, add_special_tokens=False)["input_ids"][:5]
    cls, sep, pad = (tokenizer.special[kind] for kind in ("cls", "sep", "pad"))
    seen, starts = set(), defaultdict(list)
    for n in range(len(features)):
        second, end = int(features.second_N[n]), int(features.length_N[n])
        ids = features.ids_NL[n].tolist()
        # Put together by hand: [CLS] question [SEP] tokens begin.. of the paragraph [SEP] padding.
        begin = n * stride
        own = whole["input_ids"][begin : begin + length - len(asked) - 3]
        assert ids[:end] == [cls, *asked, sep, *own, sep] and set(ids[end:]) <= {pad}
        offsets = whole["offset_mapping"][begin : begin + len(own)]
        assert [tuple(span) for span in features.spans_NL2[n, second : end - 1].tolist()] == offsets
        seen |= set(range(begin, begin + len(own)))
        for place in np.nonzero(features.may_start_NL[n])[0]:
            starts[begin + int(place) - second].append((n, min(place - second, end - 2 - place)))
        # The answer, where it is in the window whole.
        place, last = int(features.start_N[n]), int(features.end_N[n])
        if place:
            text = context[features.spans_NL2[n, place, 0] : features.spans_NL2[n, last, 1]]
            assert text.strip() == answer.strip()
        else:
            assert last == 0
            low, high = offsets[0][0], offsets[-1][1]
            assert not (low <= start and start + len(answer) <= high) or answer.strip() == ""
    assert seen == set(range(len(whole["input_ids"])))
    # Each token may start an answer once: where the fewer of its two sides is longest.
    assert sorted(starts) == sorted(seen)
    for token, places in starts.items():
        ((window, _),) = places
        sides = []
        for n in range(len(features)):
            count = int(features.length_N[n] - features.second_N[n]) - 1
            if 0 <= token - n * stride < count:
                sides.append((min(token - n * stride, n * stride + count - 1 - token), n))
        assert max(side for side, _ in sides) == dict((n, s) for s, n in sides)[window]


def test_the_start_and_end_of_an_answer_inside_a_word(tokenizer):
    context = "Built (1895-1943) in Zürich."
    asked, lengths = [ask(context, text) for text in ("1895", "Zürich", None)], Lengths(40, 10, 8)
    features = reader.cut(asked, tokenizer, lengths, training=True)
    texts = [
        tokenizer.inner.decode(row[start : end + 1])
        for row, start, end in zip(features.ids_NL, features.start_N, features.end_N, strict=True)
    ]
    assert texts == ["1895", "zurich", "[CLS]"]
    assert features.left_out == 0 and not features.spans_NL2.size  # which training needs not
    lost = Question("q", 0, context, "Where?", ("Rome",), None)
    features = reader.cut([lost, asked[0]], tokenizer, lengths, training=True)
    assert features.left_out == 1 and features.question_N.tolist() == [1]
    assert len(reader.cut([lost], tokenizer, lengths, training=False)) == 1
    with pytest.raises(ValueError, match="none of the questions"):
        reader.cut([lost], tokenizer, lengths, training=True)


def logits(features, wanted, context):
    """Return logits that are 0 but at the given tokens of the given windows."""
    found = np.zeros(features.ids_NL.shape, np.float32)
    for (n, word), value in wanted.items():
        (place,) = [i for i, (_, w) in enumerate(words_of(features, n, context)) if w == word]
        found[n, features.second_N[n] + place] = value
    return found


def test_the_best_stretch_of_all_windows_is_the_answer(tokenizer):
    context = "Ada was born in New Haven. Hugo moved to Oslo."
    features = reader.cut([ask(context, "Oslo")], tokenizer, Lengths(16, 3, 5), training=False)
    assert len(features) > 2
    shows = {
        word: [
            (n, bool(features.may_start_NL[n, features.second_N[n] + i]))
            for n in range(len(features))
            for i, (_, text) in enumerate(words_of(features, n, context))
            if text == word
        ]
        for word in ("New", "Oslo")
    }
    (best, _), (edge, _) = sorted(shows["New"], key=lambda place: not place[1])[:2]
    last = dict((may, n) for n, may in shows["Oslo"])[True]
    start = logits(features, {(best, "New"): 5.0, (last, "Oslo"): 4.0}, context)
    start += logits(features, {(edge, "New"): 50.0}, context)  # where it does not count
    end = logits(features, {(best, "Haven"): 3.0, (last, "Oslo"): 3.0}, context)
    start[:, 0], end[:, 0] = np.arange(len(features)), 1.0

    def decode(n_best, most):
        (found,) = answers.decode(features, [context], start, end, n_best=n_best, max_answer=most)
        return found

    found = decode(3, 4)
    assert found.texts[:2] == ("New Haven", "Oslo") and found.scores[:2] == (8.0, 7.0)
    assert len(found.texts) == 3 and found.none == 1.0 and found.doubt == -7.0
    assert decode(1, 1).texts == ("Oslo",)
    # An answer cannot end before it starts: "was" comes before "New".
    end += logits(features, {(n, "was"): 9.0 for n, _ in shows["New"][:1]}, context)
    assert not any(text.startswith("New Haven was") for text in decode(20, 30).texts)
    bare = reader.cut([ask("", None)], tokenizer, Lengths(16, 3, 5), training=False)
    zeros = np.zeros(bare.ids_NL.shape, np.float32)
    (found,) = answers.decode(bare, [""], zeros, zeros, n_best=3, max_answer=4)
    assert found.text == "" and found.doubt == float("inf")  # no stretch at all


# --- the files

CONTEXT = "The Norman dynasty (911\u20131135) ruled in Rouen, Normandy."
QUESTIONS = [
    {
        "question": "Where did they rule?", "id": "56ddde6b", "is_impossible": False,
        "answers": [{"text": t, "answer_start": CONTEXT.index(t)} for t in ("Rouen", "Normandy")],
    },
    {
        "question": "Where did they not rule?", "id": "5ad39d53", "is_impossible": True,
        "answers": [], "plausible_answers": [{"text": "Normandy", "answer_start": 46}],
    },
]  # fmt: skip
OFFICIAL = {
    "version": "v2.0",
    "data": [
        {"title": "Normans", "paragraphs": [{"qas": QUESTIONS, "context": CONTEXT}]},
        {"title": "Nothing", "paragraphs": []},
    ],
}


def read(folder, raw, version="2.0"):
    path = folder / "dev.json"
    path.write_bytes(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    return reader.read(path, version)


def test_the_official_form_is_read(tmp_path):
    one, other = read(tmp_path, OFFICIAL)
    assert (one.id, one.article, one.text) == ("56ddde6b", 0, "Where did they rule?")
    assert one.answers == ("Rouen", "Normandy") and one.start == 39
    assert other.answers == () and other.start is None and one.context is other.context
    raw = copy.deepcopy(OFFICIAL)
    with pytest.raises(
        ValueError, match=r"question 5ad39d53 has no answer, which SQuAD 1\.1 requires"
    ):
        read(tmp_path, raw, "1.1")
    del raw["data"][0]["paragraphs"][0]["qas"][1]
    del raw["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"]
    assert len(read(tmp_path, raw, "1.1")) == 1


@pytest.mark.parametrize(
    "path",
    ["data", "data.1.paragraphs", "data.0.paragraphs.0.context", "data.0.paragraphs.0.qas.1.id",
     "data.0.paragraphs.0.qas.0.question", "data.0.paragraphs.0.qas.0.answers",
     "data.0.paragraphs.0.qas.0.answers.1.text"],
)  # fmt: skip
def test_a_key_that_is_missing_or_of_another_type_is_named(path, tmp_path):
    *above, last = path.split(".")
    for value in (None, 7.5, {"text": ["Rouen"]}):
        raw = copy.deepcopy(OFFICIAL)
        node = raw
        for key in above:
            node = node[int(key) if key.isdigit() else key]
        node[last] = value
        with one_line(rf'\(.* needs "{last}", a \w+\): give it'):
            read(tmp_path, raw)


def test_what_is_no_such_file_is_one_line(tmp_path):
    twice = copy.deepcopy(OFFICIAL)
    twice["data"].append(twice["data"][0])
    for raw in (b'{"data": [', b"[]", b'{"data": []}', b"\x80", twice):
        with pytest.raises(ValueError, match=r"^.*dev\.json cannot be read.*$"):
            read(tmp_path, raw)


@pytest.mark.parametrize(
    ("text", "start", "found"),
    [
        ("Rouen", 39, 39),
        ("1135", 22, 24),  # within the words that lie there
        ("Normandy", 39, 46),
        ("dynasty", 39, None),
        ("Normandy", -1, None),
        ("Normandy", 1000, None),
        ("  ", 3, None),
    ],
)
def test_answers_are_looked_for_where_they_should_be(text, start, found):
    assert reader.find_answer(CONTEXT, text, start) == found
