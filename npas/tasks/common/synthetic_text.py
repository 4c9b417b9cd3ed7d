"""Generate texts about people, and write them as SQuAD, as plain text and as a tokenizer.

Paragraphs tell of several people where and when they were born, what they worked as, where they
moved and what they played; questions ask for one of these. Whoever has the same name elsewhere has
another life, so that an answer must be read off its paragraph. Lives are told in order, so that the
order of sentences can be learned. The same bytes each time.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

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
TELLING = {
    "birth": "{name} was born in {born_in} in {born}.",
    "job": "{name} worked as a {job}.",
    "move": "In {moved}, {name} moved to {moved_to}.",
    "play": "{name} played the {instrument}.",
}
# For each question what of a life it asks for, and in which sentence that is told.
ASKING = {
    "Where was {name} born?": ("born_in", "birth"),
    "When was {name} born?": ("born", "birth"),
    "What did {name} work as?": ("job", "job"),
    "Where did {name} move?": ("moved_to", "move"),
    "When did {name} move?": ("moved", "move"),
    "What did {name} play?": ("instrument", "play"),
}


@dataclass(frozen=True)
class Life:
    """What there is to tell of somebody, and what of it is told."""

    facts: dict[str, str]
    told: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Return the sentences, in order."""
        return [TELLING[kind].format(**self.facts) for kind in self.told]


def draw_life(rng: Random, name: str, sentences: int) -> Life:
    """Draw a life, of which so many of four sentences are told."""
    born = rng.randrange(1850, 1960)
    facts = {
        "name": name,
        "born_in": rng.choice(CITIES),
        "born": str(born),
        "job": rng.choice(JOBS),
        "moved_to": rng.choice(CITIES),
        "moved": str(born + rng.randrange(18, 60)),
        "instrument": rng.choice(INSTRUMENTS),
    }
    told = sorted(rng.sample(list(TELLING), sentences), key=list(TELLING).index)
    return Life(facts, tuple(told))


def draw_names(rng: Random, count: int) -> list[str]:
    """Draw names that differ: most of them a first name alone, which is soon learned."""
    return [
        name if rng.random() < 0.8 else f"{name} {rng.choice(LAST)}"
        for name in rng.sample(FIRST, count)
    ]


# --- SQuAD


def write_squad(root: Path, version: str, train: int, test: int) -> None:
    """Write `train-v1.1.json` and `dev-v1.1.json`, or those of 2.0, with so many questions."""
    for part, count in (("train", train), ("dev", test)):
        rng = Random(f"squad {version} {part}")
        articles, left = [], count
        while left:
            # Two articles at least, so that one can be held out.
            wanted = min(left, 12, max(1, count // 2))
            articles.append(_article(rng, version, f"{part}{count - left}", wanted))
            left -= wanted
        made = {"version": f"v{version}" if version == "2.0" else version, "data": articles}
        (root / f"{part}-v{version}.json").write_text(json.dumps(made), encoding="utf-8")


def _article(rng: Random, version: str, name: str, questions: int) -> dict[str, Any]:
    paragraphs: list[dict[str, Any]] = []
    while questions:
        wanted = min(questions, 4)
        paragraphs.append(_paragraph(rng, version, f"{name}-{len(paragraphs)}", wanted))
        questions -= wanted
    return {"title": f"People_{name}", "paragraphs": paragraphs}


def _paragraph(rng: Random, version: str, name: str, questions: int) -> dict[str, Any]:
    """Write two or three lives and questions; of 2.0 a third of the questions has no answer."""
    *names, absent = draw_names(rng, rng.choice((3, 4)))
    lives = [draw_life(rng, person, sentences=3) for person in names]
    context = " ".join(sentence for life in lives for sentence in life.sentences())
    asked = []
    for i in range(questions):
        impossible = version == "2.0" and rng.random() < 1 / 3
        entry: dict[str, Any] = {"id": f"{name}-{i}"}
        if version == "2.0":
            entry["is_impossible"] = impossible
        if impossible:
            question = rng.choice(list(ASKING))
            entry |= {"question": question.format(name=absent), "answers": []}
            entry["plausible_answers"] = [_answer(context, lives[0], *ASKING[question])]
        else:
            life = rng.choice(lives)
            question = rng.choice([q for q, (_, kind) in ASKING.items() if kind in life.told])
            answer = _answer(context, life, *ASKING[question])
            entry |= {"question": question.format(**life.facts), "answers": [answer] * 3}
        asked.append(entry)
    return {"context": context, "qas": asked}


def _answer(context: str, life: Life, fact: str, kind: str) -> dict[str, Any]:
    """Find a fact in its own sentence; the same word may stand elsewhere, too."""
    text = life.facts[fact]
    sentence = context.find(TELLING[kind].format(**life.facts))
    return {"text": text, "answer_start": max(0, context.find(text, max(0, sentence)))}


# --- plain text


def write_texts(root: Path, documents: int) -> None:
    """Write `text/*.txt`: documents of ten sentences, two files of them where there are two."""
    (root / "text").mkdir()
    rng = Random("texts")
    made = list(_documents(rng, documents))
    half = max(1, documents // 2)
    for i, part in enumerate((made[:half], made[half:])):
        if part:
            text = "\n\n".join("\n".join(document) for document in part)
            (root / "text" / f"{i}.txt").write_text(f"{text}\n", encoding="utf-8")


def _documents(rng: Random, count: int) -> Iterator[list[str]]:
    for _ in range(count):
        lives = [draw_life(rng, name, sentences=4) for name in draw_names(rng, 3)]
        yield [sentence for life in lives for sentence in life.sentences()]


# --- the tokenizer


def write_tokenizer(root: Path) -> Path:
    """Write a WordPiece tokenizer as transformers stores one, in a folder of its own; return it.

    It knows most words of this world whole, years as two pieces, and anything else by letters.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.BertNormalizer(lowercase=True)
    words: list[str] = []
    for text in (*FIRST, *LAST, *CITIES, *JOBS, *INSTRUMENTS, *OTHERS):
        words += normalizer.normalize_str(text).split()
    # Each seventh name comes in pieces.
    pieces = {normalizer.normalize_str(text) for text in (*FIRST[::7], *LAST[::7])}
    letters = string.ascii_lowercase + string.digits
    years = [f"{n:02}" for n in range(100)]
    vocabulary = dict.fromkeys(
        (
            *SPECIAL, *string.punctuation, *letters, *(f"##{letter}" for letter in letters),
            *years, *(f"##{year}" for year in years),
            *(word for word in words if word not in pieces),
        )
    )  # fmt: skip
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    folder = root / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = ("pad", "unk", "cls", "sep", "mask")
    settings: dict[str, object] = {
        f"{role}_token": token for role, token in zip(roles, SPECIAL, strict=True)
    }
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
