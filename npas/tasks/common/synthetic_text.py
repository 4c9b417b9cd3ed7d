"""Generate texts about people, and write them as SQuAD, as plain text, and as a tokenizer.

Paragraphs state where and when people were born, their jobs, where they moved and what instruments
they played; questions ask for one of these facts. Facts are drawn anew for each paragraph, so that
an answer must be read from it. Facts are stated in chronological order, so that the order of
sentences can be learned. The output is deterministic.
"""

import json
import string
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

_FIRST = (
    "Ada Alan Amir Anna Arne Björn Carl Chloé Clara Dora Eli Emil Erik Eva Fatima Fred Greta Hana"
    " Hugo Ines Ivan Jane João José Karin Kofi Lena Leo Lina Luca Mara Marie Max Mei Mira Nils Noa"
    " Olga Omar Otto Paul Petra Rosa Ruth Sami Sofia Tomás Vera Yara Zoë"
)
_LAST = (
    "Abbott Alvarez Baker Bauer Becker Brandt Carter Castro Dahl Dupont Eriksen Fischer Fontaine"
    " Garcia Gomez Haas Hansen Hoffman Ito Jansen Keller Kim Klein Kovač Lang Larsen Lopez Meyer"
    " Moreau Müller Nakamura Novak Nowak Olsen Okafor Peters Petrov Quinn Rossi Santos Sato Schmidt"
    " Silva Singh Suzuki Tanaka Vogel Wagner Weber Ziegler"
)
_CITIES = (
    "Accra|Athens|Austin|Basel|Bergen|Berlin|Boston|Bremen|Cairo|Cork|Delhi|Denver|Dublin|Geneva|"
    "Genoa|Ghent|Hanoi|Jena|Kiel|Kyoto|Lagos|Leeds|Lima|Lisbon|London|Lyon|Madrid|Milan|Nairobi|"
    "New Haven|New York|Oslo|Paris|Porto|Prague|Quito|Riga|Rome|San José|Seoul|Sofia|St. Ives|"
    "Tokyo|Tunis|Turin|Vienna|Warsaw|Zürich"
)
_JOBS = (
    "baker barber builder butcher carpenter chemist cook dancer dentist doctor driver farmer fisher"
    " gardener glazier judge lawyer mason miller miner nurse painter pilot plumber poet potter"
    " printer sailor singer smith surgeon tailor teacher weaver welder writer"
)
_INSTRUMENTS = (
    "banjo bassoon cello clarinet cornet drums fiddle flute guitar harp horn lute mandolin oboe"
    " organ piano recorder saxophone trombone trumpet tuba viola violin zither"
)
_OTHERS = "was born in worked as a moved to played the where when what did work move play"
FIRST, LAST, JOBS, INSTRUMENTS, OTHERS = (
    text.split() for text in (_FIRST, _LAST, _JOBS, _INSTRUMENTS, _OTHERS)
)
CITIES = _CITIES.split("|")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SENTENCES = {
    "birth": "{name} was born in {born_in} in {born}.",
    "job": "{name} worked as a {job}.",
    "move": "In {moved}, {name} moved to {moved_to}.",
    "play": "{name} played the {instrument}.",
}
# The fact that each question asks for, and the sentence that states it.
QUESTIONS = {
    "Where was {name} born?": ("born_in", "birth"),
    "When was {name} born?": ("born", "birth"),
    "What did {name} work as?": ("job", "job"),
    "Where did {name} move?": ("moved_to", "move"),
    "When did {name} move?": ("moved", "move"),
    "What did {name} play?": ("instrument", "play"),
}


class Life(NamedTuple):
    """The facts about a person, and the kinds of sentences to write, in order."""

    facts: dict[str, str]
    kinds: list[str]

    def sentences(self) -> list[str]:
        return [SENTENCES[kind].format(**self.facts) for kind in self.kinds]


def draw_life(rng: Random, name: str, sentences: int) -> Life:
    """Draw facts about a person, and `sentences` of the four kinds of sentences."""
    born = rng.randrange(1850, 1960)
    facts = {"name": name, "born_in": rng.choice(CITIES), "born": str(born)}
    facts |= {"job": rng.choice(JOBS), "moved_to": rng.choice(CITIES)}
    facts |= {"moved": str(born + rng.randrange(18, 60)), "instrument": rng.choice(INSTRUMENTS)}
    return Life(facts, sorted(rng.sample(list(SENTENCES), sentences), key=list(SENTENCES).index))


def draw_names(rng: Random, count: int) -> list[str]:
    """Draw different names, most of them only a first name, which is quickly learned."""
    return [
        name if rng.random() < 0.8 else f"{name} {rng.choice(LAST)}"
        for name in rng.sample(FIRST, count)
    ]


# --- SQuAD


def write_squad(root: Path, version: str, train: int, test: int) -> None:
    """Write `train-v1.1.json` and `dev-v1.1.json`, or those of 2.0, with so many questions.

    There are at most four questions per paragraph and twelve per article, and at least two
    articles, so that one can be held out.
    """
    for part, count in (("train", train), ("dev", test)):
        rng = Random(f"squad {version} {part}")
        articles = []
        for first in range(0, count, many := min(12, max(1, count // 2))):
            here = min(many, count - first)
            name = f"{part}{first}"
            paragraphs = [
                _paragraph(rng, version, f"{name}-{i // 4}", min(4, here - i))
                for i in range(0, here, 4)
            ]
            articles.append({"title": f"People_{name}", "paragraphs": paragraphs})
        made = {"version": f"v{version}" if version == "2.0" else version, "data": articles}
        (root / f"{part}-v{version}.json").write_text(json.dumps(made), encoding="utf-8")


def _paragraph(rng: Random, version: str, name: str, questions: int) -> dict[str, Any]:
    """Write about two or three people, with questions; in 2.0 a third of them has no answer."""
    *names, absent = draw_names(rng, rng.choice((3, 4)))
    lives = [draw_life(rng, person, sentences=3) for person in names]
    context = " ".join(sentence for life in lives for sentence in life.sentences())
    asked = []
    for i in range(questions):
        entry: dict[str, Any] = {"id": f"{name}-{i}"}
        if version == "2.0":
            entry["is_impossible"] = rng.random() < 1 / 3
        if entry.get("is_impossible"):
            question = rng.choice(list(QUESTIONS))
            entry |= {"question": question.format(name=absent), "answers": []}
            entry["plausible_answers"] = [_answer(context, lives[0], *QUESTIONS[question])]
        else:
            life = rng.choice(lives)
            question = rng.choice([q for q, (_, kind) in QUESTIONS.items() if kind in life.kinds])
            answer = _answer(context, life, *QUESTIONS[question])
            entry |= {"question": question.format(**life.facts), "answers": [answer] * 3}
        asked.append(entry)
    return {"context": context, "qas": asked}


def _answer(context: str, life: Life, fact: str, kind: str) -> dict[str, Any]:
    """Locate a fact in its own sentence, since the same word may occur elsewhere."""
    text = life.facts[fact]
    sentence = context.find(SENTENCES[kind].format(**life.facts))
    return {"text": text, "answer_start": max(0, context.find(text, max(0, sentence)))}


# --- plain text


def write_texts(root: Path, documents: int) -> None:
    """Write `text/*.txt`: documents of twelve sentences, in two files if there are two or more."""
    (root / "text").mkdir()
    rng = Random("texts")
    made = []
    for _ in range(documents):
        lives = [draw_life(rng, name, sentences=4) for name in draw_names(rng, 3)]
        made.append("\n".join(sentence for life in lives for sentence in life.sentences()))
    half = max(1, documents // 2)
    for i, part in enumerate(filter(None, (made[:half], made[half:]))):
        text = "\n\n".join(part) + "\n"
        (root / "text" / f"{i}.txt").write_text(text, encoding="utf-8")


# --- the tokenizer


def write_wordpieces(folder: Path, words: Iterable[str]) -> None:
    """Write a BERT tokenizer with these words into a new folder, in the format of transformers."""
    folder.mkdir(parents=True)
    lines = "".join(f"{word}\n" for word in words)
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_tokenizer(root: Path) -> Path:
    """Write a WordPiece tokenizer in the format of transformers, and return its folder.

    Most synthetic words are one token, years are two, and anything else is split into letters.
    """
    from tokenizers import normalizers

    bare = normalizers.BertNormalizer(lowercase=True).normalize_str
    words = " ".join(map(bare, (*FIRST, *LAST, *CITIES, *JOBS, *INSTRUMENTS, *OTHERS))).split()
    cut = set(map(bare, (*FIRST[::7], *LAST[::7])))  # every seventh name is split
    letters = string.ascii_lowercase + string.digits
    years = [f"{n:02}" for n in range(100)]
    vocabulary = (
        *SPECIAL, *string.punctuation, *letters, *(f"##{letter}" for letter in letters),
        *years, *(f"##{year}" for year in years), *(word for word in words if word not in cut),
    )  # fmt: skip
    write_wordpieces(root / "tokenizer", dict.fromkeys(vocabulary))
    return root / "tokenizer"
