"""Find words for the things of a scene that tell each from all others.

What is said of a thing is true of that thing alone: by its attributes, because of where it is seen
from another that its own attributes tell, or by the side of the image that it is at.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from npas.tasks.scenes.world import Difficulty, Scene, Thing, relation

# Words for the same, of what has more than one.
SAID = {
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
GROUPS = (2, 3)  # things that are told of together
NEIGHBOURLY = 2  # attributes at most, where a neighbour is told, too: phrases stay short
# Sides of the image: the axis, and whether the largest coordinate is meant.
PLACES = {
    "on the left": (0, False),
    "on the right": (0, True),
    "at the top": (1, False),
    "at the bottom": (1, True),
}
AHEAD = 8  # pixels that a thing at a side is ahead of all others that the words are true of


def choose(rng: Random, word: str) -> str:
    """Choose among the words for the same."""
    return rng.choice(SAID.get(word, (word,)))


def plural(noun: str) -> str:
    """Return the word for several."""
    return PLURALS.get(noun, f"{noun}s")


class Words(NamedTuple):
    """What a phrase says of a thing: an attribute that is not said is empty."""

    size: str = ""
    colour: str = ""
    material: str = ""
    shape: str = ""

    def true_of(self, thing: Thing) -> bool:
        """Return whether all that is said is true."""
        return all(word in ("", own) for word, own in zip(self, thing.attributes, strict=True))

    def said(self) -> int:
        """Count the attributes that are said, besides the shape."""
        return sum(map(bool, self[:3]))

    def spoken(self, rng: Random, many: bool = False) -> str:
        """Choose among words for the same, and put them in order."""
        noun = choose(rng, self.shape)
        before = [choose(rng, word) for word in self[:3] if word]
        return " ".join([*before, plural(noun) if many else noun])


def those(scene: Scene, words: Words) -> tuple[int, ...]:
    """Return the numbers of the things that the words are true of."""
    return tuple(i for i, thing in enumerate(scene.things) if words.true_of(thing))


def kind(thing: Thing, colour: bool) -> Words:
    """Return the words for things of the same shape, and of the same colour if wanted."""
    return Words(colour=thing.colour if colour else "", shape=thing.shape)


def alike(scene: Scene) -> list[tuple[int, ...]]:
    """Return the groups that can be told of: all things of a shape, or of a shape and colour.

    Each has two or three things; the numbers of these, no group twice.
    """
    pairs = itertools.product((True, False), scene.things)
    groups = dict.fromkeys(those(scene, kind(thing, colour)) for colour, thing in pairs)
    return [group for group in groups if len(group) in GROUPS]


class Teller:
    """Find phrases for the things of one scene, another at each call."""

    def __init__(self, rng: Random, scene: Scene, difficulty: Difficulty) -> None:
        self.rng = rng
        self.scene = scene
        # An attribute that all things of the world share is not worth a word.
        worth = (difficulty.sizes > 1, difficulty.colours > 1, difficulty.materials > 1, True)
        self.telling: dict[int, list[Words]] = defaultdict(list)  # of a thing, true of it alone
        self.vague: dict[int, dict[Words, tuple[int, ...]]] = defaultdict(dict)  # and of others
        meant: dict[Words, tuple[int, ...]] = {}
        for i, thing in enumerate(scene.things):
            own = zip(thing.attributes, worth, strict=True)
            ways = [("", word) if there else ("",) for word, there in own]
            for words in itertools.starmap(Words, itertools.product(*ways)):
                if not any(words):
                    continue
                if words not in meant:
                    meant[words] = those(scene, words)
                if others := tuple(j for j in meant[words] if j != i):
                    self.vague[i][words] = others
                else:
                    self.telling[i].append(words)
        self.where = [[relation(one, other) for other in scene.things] for one in scene.things]
        self.neighbours: dict[int, list[tuple[Words, int]]] = {}

    def by_attributes(self, number: int) -> str | None:
        """Describe a thing by its attributes; None where another has them all, too."""
        among = self.telling[number]
        return self._choose(among).spoken(self.rng) if among else None

    def by_neighbour(self, number: int, article: str = "") -> str | None:
        """Describe a thing by shared attributes and a neighbour; None where nothing does.

        The neighbour is told by its attributes, and of all others that the words are true of it is
        clear that they are elsewhere, seen from it. An article goes before each of the two.
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
        short = [words for words in self.telling[other] if words.said() <= NEIGHBOURLY]
        neighbour = self._choose(short or self.telling[other]).spoken(self.rng)
        told = [article, words.spoken(self.rng), choose(self.rng, where), article, neighbour]
        return " ".join(filter(None, told))

    def by_place(self, number: int) -> str | None:
        """Describe a thing by shared attributes and its side of the image, or None.

        It is further to that side than any other that the words are true of.
        """
        things = self.scene.things
        found = []
        for words, others in self.vague[number].items():
            for place, (axis, largest) in PLACES.items():
                sign = 1 if largest else -1
                nearest = max(sign * things[i].centre[axis] for i in others)
                ahead = sign * things[number].centre[axis] - nearest
                if words.said() <= NEIGHBOURLY and ahead >= AHEAD:
                    found.append((words, place))
        if not found:
            return None
        words, place = self.rng.choice(found)
        return f"{words.spoken(self.rng)} {place}"

    def _choose(self, among: list[Words]) -> Words:
        """Choose words; rather with the shape than without, rather few than many."""
        weights = [(1.0 if words.shape else 0.4) * 0.7 ** words.said() for words in among]
        return self.rng.choices(among, weights)[0]

    def _neighbours(self, number: int) -> Iterator[tuple[Words, int]]:
        """Find words for a thing, and other things from which it alone is where it is."""
        for words, others in self.vague[number].items():
            if words.said() > NEIGHBOURLY:
                continue
            for other, where in enumerate(self.where[number]):
                if where is None or not self.telling[other]:
                    continue
                elsewhere = [self.where[i][other] for i in others if i != other]
                if elsewhere and None not in elsewhere and where not in elsewhere:
                    yield words, other


def refer(scene: Scene, difficulty: Difficulty) -> dict[int, list[str]]:
    """Return one to three expressions for each thing, as in ReferIt: without articles.

    Things that nothing tells are left out. `difficulty.relations` is the part of those told by a
    neighbour or by a side of the image, where one of the two is possible.
    """
    rng = scene.random("expressions")
    teller = Teller(rng, scene, difficulty)
    found: dict[int, list[str]] = {}
    for number in range(len(scene.things)):
        expressions: list[str] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            ways = [teller.by_attributes, teller.by_neighbour, teller.by_place]
            if rng.random() < difficulty.relations or not teller.telling[number]:
                ways = [*rng.sample(ways[1:], 2), ways[0]]
            text = next(filter(None, (way(number) for way in ways)), None)
            if text is not None and text not in expressions:
                expressions.append(text)
        if expressions:
            found[number] = expressions
    return found
