"""What is said of scenes is true, and means what it is said to mean: read by a reader of its own.

The reader below knows words and geometry, and nothing of how phrases are made.
"""

import itertools
import re
from collections import Counter

import pytest

from npas.tasks.scenes.captions import Phrase, plain, tell, vocabulary
from npas.tasks.scenes.language import refer
from npas.tasks.scenes.world import SHAPES, Difficulty, draw_scene

MEANING = {"disc": "circle", "box": "square", "hoop": "ring"}
MEANING |= {"little": "small", "big": "large", "spotted": "dotted"}
MEANING |= {f"{word}s": MEANING.get(word, word) for word in [*SHAPES, "disc", "hoop"]}
MEANING |= {"boxes": "square", "crosses": "cross"}
EMPTY = {"the", "a", "an", "thing"}
NUMBERS = {"two": 2, "both": 2, "three": 3, "all": 3}
WHERE = re.compile(r" (left of|right of|above|over|below|under) ")
PLACE = re.compile(r" (on the left|on the right|at the top|at the bottom)$")
EVERYTHING = {"shapes": 8, "colours": 8, "sizes": 3, "materials": 4, "groups": 0.4}
WORLDS = [
    {},
    EVERYTHING,
    {"palette": 2, "sizes": 1, "materials": 1, "relations": 1.0},
    {"least": 2, "most": 2},
]


def draw(count, **keys):
    difficulty = Difficulty(**keys)
    return ((draw_scene(difficulty, 3, number), difficulty) for number in range(count))


def matching(scene, text):
    """Read "small red circle": the things that have all of these attributes."""
    said = {MEANING.get(word, word) for word in text.lower().split() if word not in EMPTY}
    return {
        i
        for i, thing in enumerate(scene.things)
        if said <= {thing.shape, thing.colour, thing.size, thing.material}
    }


def offset(thing, other):
    ends = [[thing.box[i] + thing.box[i + 2] for i in (0, 1)] for thing in (thing, other)]
    return (ends[0][0] - ends[1][0]) / 2, (ends[0][1] - ends[1][1]) / 2


def mostly(way, x, y):
    """Return whether an offset leads further this way than across."""
    far = {"left of": -x, "right of": x, "above": -y, "over": -y, "below": y, "under": y}[way]
    return far > 0 and abs(far) == max(abs(x), abs(y))


def means(scene, text):
    """Read a phrase about one thing, with a neighbour or a side of the image or without."""
    if place := PLACE.search(text):
        among = matching(scene, text[: place.start()])
        assert len(among) > 1, f"{text}: nothing else is like it"
        axis = 0 if place[1] in ("on the left", "on the right") else 1
        sign = -1 if place[1] in ("on the left", "at the top") else 1
        return {max(among, key=lambda i: sign * sum(scene.things[i].box[axis::2]))}
    if way := WHERE.search(text):
        (neighbour,) = matching(scene, text[way.end() :])
        among = matching(scene, text[: way.start()])
        assert len(among - {neighbour}) > 1, f"{text}: the neighbour is not needed"
        offsets = {i: offset(scene.things[i], scene.things[neighbour]) for i in among}
        return {i for i in among - {neighbour} if mostly(way[1], *offsets[i])}
    return matching(scene, text)


def phrases(story):
    return [piece for own in story.captions for piece in own if isinstance(piece, Phrase)]


@pytest.mark.parametrize("keys", WORLDS, ids=str)
def test_what_is_said_is_true_of_what_it_means_and_of_nothing_else(keys):
    read = Counter()
    for scene, difficulty in draw(50, **keys):
        story = tell(scene, difficulty)
        assert len(story.captions) == 5
        for phrase in phrases(story):
            meant = story.chains.get(phrase.chain)
            meant = set(meant) if isinstance(meant, tuple) else set()
            read[phrase.types[0]] += 1
            number, _, rest = phrase.text.lower().partition(" ")
            if phrase.text == "it" or not meant:
                continue  # which come next
            if number in NUMBERS:
                assert matching(scene, rest) == meant, phrase.text
                assert len(meant) == NUMBERS[number] and phrase.types[0] == "people"
            else:
                assert means(scene, phrase.text) == meant, phrase.text
                assert (phrase.types == ("other",)) == bool(WHERE.search(phrase.text))
        for number, texts in refer(scene, difficulty).items():
            assert 1 <= len(texts) <= 3 and len(set(texts)) == len(texts)
            for text in texts:
                assert means(scene, text) == {number}, text
                read["place" if PLACE.search(text) else "near" if WHERE.search(text) else ""] += 1
    assert read["scene"] > 10 and read["place"] > 10
    assert keys.get("most") == 2 or min(read["other"], read["near"]) > 10


def test_every_word_is_in_the_vocabulary_and_phrases_are_short():
    for scene, difficulty in draw(20, sizes=1, materials=1, pronouns=0.0):
        texts = [phrase.text for phrase in phrases(tell(scene, difficulty))]
        texts += itertools.chain(*refer(scene, difficulty).values())
        assert not re.search(r"\b(medium|plain)\b", " ".join(texts))  # which all things share
    known, said = set(vocabulary()), set()
    for scene, difficulty in draw(150, **EVERYTHING):
        story = tell(scene, difficulty)
        assert max(len(phrase.text.split()) for phrase in phrases(story)) <= 11
        texts = [plain(caption) for caption in story.captions]
        texts += itertools.chain(*refer(scene, difficulty).values())
        said |= {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert said <= known and len(known - said) <= 3
    assert vocabulary() == sorted(known)
