"""Generate phrases that identify a thing in a scene.

A phrase is true of one thing only: by its attributes, by its relation to a neighbour that is itself
identified by its attributes, or by the side of the image where it is.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from npas.tasks.scenes.world import Difficulty, Scene, Thing, relation

SYNONYMS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "ring": ("ring", "hoop"),
    "": ("thing",),  # of any shape
    "small": ("small", "little"),
    "large": ("large", "big"),
    "dotted": ("dotted", "spotted"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLURALS = {"box": "boxes", "cross": "crosses"}
GROUPS = (2, 3)  # sizes of groups
MOST_MODIFIERS = 2  # most attributes in a phrase that also has a neighbour or a side
# Sides of the image: the axis, and whether at its largest coordinate.
PLACES = {
    "on the left": (0, False),
    "on the right": (0, True),
    "at the top": (1, False),
    "at the bottom": (1, True),
}
MARGIN = 8  # pixels by which a thing "on the left" is left of all others that match


def choose(rng: Random, word: str) -> str:
    """Choose a synonym."""
    return rng.choice(SYNONYMS.get(word, (word,)))


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    return PLURALS.get(noun, f"{noun}s")


class Words(NamedTuple):
    """The attributes that a phrase mentions; others are empty."""

    size: str = ""
    colour: str = ""
    material: str = ""
    shape: str = ""

    def true_of(self, thing: Thing) -> bool:
        return all(word in ("", own) for word, own in zip(self, thing.attributes, strict=True))

    def modifiers(self) -> int:
        return sum(map(bool, self[:3]))

    def phrase(self, rng: Random, many: bool = False) -> str:
        noun = choose(rng, self.shape)
        before = [choose(rng, word) for word in self[:3] if word]
        return " ".join([*before, plural(noun) if many else noun])


def matching(scene: Scene, words: Words) -> tuple[int, ...]:
    """Return the indices of the things that have these attributes."""
    return tuple(i for i, thing in enumerate(scene.things) if words.true_of(thing))


def kind(thing: Thing, colour: bool) -> Words:
    """Return the words for things of the same shape and, with `colour`, of the same colour."""
    return Words(colour=thing.colour if colour else "", shape=thing.shape)


def alike(scene: Scene) -> list[tuple[int, ...]]:
    """Return groups of two or three things: all of a shape, or of a shape and colour."""
    pairs = itertools.product((True, False), scene.things)
    groups = dict.fromkeys(matching(scene, kind(thing, colour)) for colour, thing in pairs)
    return [group for group in groups if len(group) in GROUPS]


class Describer:
    """Generates random phrases for the things of one scene."""

    def __init__(self, rng: Random, scene: Scene, difficulty: Difficulty) -> None:
        self.rng = rng
        self.scene = scene
        # An attribute with a single value is not mentioned.
        varies = (difficulty.sizes > 1, difficulty.colours > 1, difficulty.materials > 1, True)
        self.unique: dict[int, list[Words]] = defaultdict(list)  # true of this thing only
        # True of this thing and others, with the others.
        self.shared: dict[int, dict[Words, tuple[int, ...]]] = defaultdict(dict)
        meant: dict[Words, tuple[int, ...]] = {}
        for i, thing in enumerate(scene.things):
            own = zip(thing.attributes, varies, strict=True)
            choices = [("", word) if mentioned else ("",) for word, mentioned in own]
            for words in itertools.starmap(Words, itertools.product(*choices)):
                if not any(words):
                    continue
                if words not in meant:
                    meant[words] = matching(scene, words)
                if others := tuple(j for j in meant[words] if j != i):
                    self.shared[i][words] = others
                else:
                    self.unique[i].append(words)
        self.where = [[relation(one, other) for other in scene.things] for one in scene.things]
        self.neighbours: dict[int, list[tuple[Words, int]]] = {}

    def by_attributes(self, number: int) -> str | None:
        """Describe a thing by its attributes; returns None if another has them all, too."""
        among = self.unique[number]
        return self._choose(among).phrase(self.rng) if among else None

    def by_neighbour(self, number: int, article: str = "") -> str | None:
        """Describe a thing by its relation to a neighbour; returns None if that is impossible.

        The neighbour is identified by its attributes. All other things that match the thing's
        words clearly have another relation to it. `article` is put before both.
        """
        if number not in self.neighbours:
            self.neighbours[number] = list(self._neighbours(number))
        pairs = self.neighbours[number]
        if not pairs:
            return None
        words = self._choose(list(dict(pairs)))
        other = self.rng.choice([other for own, other in pairs if own == words])
        where = self.where[number][other]
        assert where is not None
        short = [words for words in self.unique[other] if words.modifiers() <= MOST_MODIFIERS]
        neighbour = self._choose(short or self.unique[other]).phrase(self.rng)
        pieces = [article, words.phrase(self.rng), choose(self.rng, where), article, neighbour]
        return " ".join(filter(None, pieces))

    def by_place(self, number: int) -> str | None:
        """Describe a thing by its side of the image; returns None if that is impossible.

        It is further to that side than any other thing that matches the words.
        """
        things = self.scene.things
        found = []
        for words, others in self.shared[number].items():
            for place, (axis, largest) in PLACES.items():
                sign = 1 if largest else -1
                nearest = max(sign * things[i].centre[axis] for i in others)
                ahead = sign * things[number].centre[axis] - nearest
                if words.modifiers() <= MOST_MODIFIERS and ahead >= MARGIN:
                    found.append((words, place))
        if not found:
            return None
        words, place = self.rng.choice(found)
        return f"{words.phrase(self.rng)} {place}"

    def _choose(self, among: list[Words]) -> Words:
        """Choose words, preferably few, and with the shape."""
        weights = [(1.0 if words.shape else 0.4) * 0.7 ** words.modifiers() for words in among]
        return self.rng.choices(among, weights)[0]

    def _neighbours(self, number: int) -> Iterator[tuple[Words, int]]:
        """Yield words and neighbours that together identify a thing."""
        for words, others in self.shared[number].items():
            if words.modifiers() > MOST_MODIFIERS:
                continue
            for other, where in enumerate(self.where[number]):
                if where is None or not self.unique[other]:
                    continue
                elsewhere = [self.where[i][other] for i in others if i != other]
                if elsewhere and None not in elsewhere and where not in elsewhere:
                    yield words, other


def refer(scene: Scene, difficulty: Difficulty) -> dict[int, list[str]]:
    """Return one to three expressions for each thing, without articles as in ReferIt.

    Things that cannot be identified are skipped. `difficulty.relations` is the fraction identified
    by a neighbour or a side of the image, where possible.
    """
    rng = scene.random("expressions")
    describer = Describer(rng, scene, difficulty)
    found: dict[int, list[str]] = {}
    for number in range(len(scene.things)):
        expressions: list[str] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            methods = [describer.by_attributes, describer.by_neighbour, describer.by_place]
            if rng.random() < difficulty.relations or not describer.unique[number]:
                methods = [*rng.sample(methods[1:], 2), methods[0]]
            text = next(filter(None, (method(number) for method in methods)), None)
            if text is not None and text not in expressions:
                expressions.append(text)
        if expressions:
            found[number] = expressions
    return found
