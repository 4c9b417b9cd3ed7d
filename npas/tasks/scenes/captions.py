"""Write captions of a scene, whose phrases are linked to the things they mean.

A phrase about one thing is true of that thing alone, one about several means all that its words
are true of. Phrases also refer back ("it"), to the background, to what is not there and to nothing
that can be seen, as people's do.

Types are those of Flickr30K Entities, which here tell in how many ways a phrase is hard:
`animals` are round, `vehicles` square and `instruments` pointed things, told by their attributes;
`other` takes a neighbour to tell (or is not there at all), `people` are several at once, and
`clothing` is an "it", which only the caption could tell. So accuracy by type says what was learned.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

from npas.tasks.scenes import language, world
from npas.tasks.scenes.language import Teller, Words, alike, choose, kind, plural, those
from npas.tasks.scenes.world import Difficulty, Scene, relation

CAPTIONS = 5
TYPES = {
    **dict.fromkeys(("circle", "ring", "heart"), "animals"),
    **dict.fromkeys(("square", "cross"), "vehicles"),
    **dict.fromkeys(("triangle", "star", "diamond"), "instruments"),
}
NUMBERS = {2: ("two", "both"), 3: ("three", "all")}
STARTS = ("There is", "We see", "In front is", "Here is", "")
BETWEEN = ("and", "with", "together with")
UNSEEN = ("Somebody drew", "Nobody moved", "Somebody made")
ABSENT = ("a person", "any people", "the sun")
BACKGROUNDS = ("wall", "floor", "background")
OTHERS = "a an the some it is on against without"
# Parts of the captions that speak of these; of the last where the background is not told.
UNSEEN_PART, BACKGROUND_PART, ABSENT_PART = 0.15, 0.2, 0.05


@dataclass(frozen=True)
class Phrase:
    """A phrase: what it means is a chain of its scene, 0 if nothing that can be seen."""

    text: str
    chain: int
    types: tuple[str, ...]


Caption = tuple[str | Phrase, ...]


@dataclass(frozen=True)
class Story:
    """A scene's captions, and what their chains mean: numbers of things, or none with a box.

    Of chains without a box those in `scenes` mean the whole scene, the others are not there.
    """

    captions: tuple[Caption, ...]
    chains: dict[int, tuple[int, ...]]
    scenes: frozenset[int]


def marked(caption: Caption) -> str:
    """Write a caption as Flickr30K Entities does: `[/EN#chain/type words]` for a phrase."""
    pieces = [
        f"[/EN#{'/'.join((str(piece.chain), *piece.types))} {piece.text}]"
        if isinstance(piece, Phrase)
        else piece
        for piece in caption
    ]
    return " ".join(pieces)


def plain(caption: Caption) -> str:
    """Write a caption's words alone."""
    return " ".join(piece.text if isinstance(piece, Phrase) else piece for piece in caption)


def tell(scene: Scene, difficulty: Difficulty) -> Story:
    """Return five captions of a scene."""
    telling = _Telling(scene, difficulty)
    captions = tuple(telling.caption() for _ in range(CAPTIONS))
    meant = {
        chain: meaning if isinstance(meaning, tuple) else ()
        for meaning, chain in telling.chains.items()
    }
    return Story(captions, meant, frozenset({telling.chains.get("scene", 0)} - {0}))


class _Telling:
    """Make captions of one scene, whose chains have numbers that no other scene has."""

    def __init__(self, scene: Scene, difficulty: Difficulty) -> None:
        self.scene = scene
        self.difficulty = difficulty
        self.rng = scene.random("captions")
        self.teller = Teller(self.rng, scene, difficulty)
        self.groups = alike(scene)
        self.chains: dict[tuple[int, ...] | str, int] = {}  # by what they mean

    def _chain(self, meaning: tuple[int, ...] | str) -> int:
        return self.chains.setdefault(meaning, self.scene.number * 100 + len(self.chains) + 1)

    def caption(self) -> Caption:
        """Return another caption, from a capital letter to a full stop."""
        rng = self.rng
        order = list(range(len(self.scene.things)))
        rng.shuffle(order)
        first = None
        if self.groups and rng.random() < self.difficulty.groups:
            group = rng.choice(self.groups)
            pieces: list[str | Phrase] = [self._group(group)]
            order = [i for i in order if i not in group]
        else:
            first = order.pop()
            pieces = [self._thing(first)]
        if rng.random() < UNSEEN_PART:
            who, does = rng.choice(UNSEEN).split()
            pieces[:0] = [Phrase(who, 0, ("notvisual",)), does]
        elif start := rng.choice(STARTS):
            pieces.insert(0, start)
        pieces += self._more(first, order)
        # What nothing tells has no chain to refer back to.
        is_told = (first,) in self.chains
        if first is not None and is_told and rng.random() < self.difficulty.pronouns:
            thing = self.scene.things[first]
            it = Phrase("it", self._chain((first,)), ("clothing",))
            said = rng.choice((thing.size, thing.colour, thing.material))
            pieces += [",", it, "is", choose(rng, said)]
        if rng.random() < BACKGROUND_PART:
            on = rng.choice(("on", "against"))
            text = f"a {self.scene.tone} {rng.choice(BACKGROUNDS)}"
            pieces += [on, Phrase(text, self._chain("scene"), ("scene",))]
        elif rng.random() < ABSENT_PART:
            text = rng.choice(ABSENT)
            pieces += ["without", Phrase(text, self._chain(text), ("other",))]
        begin, *rest = pieces
        if isinstance(begin, str):
            return begin.capitalize(), *rest, "."
        return dataclasses.replace(begin, text=begin.text.capitalize()), *rest, "."

    def _more(self, first: int | None, order: list[int]) -> list[str | Phrase]:
        """Add another thing, by its place if that is clear, and perhaps a third."""
        rng = self.rng
        pieces: list[str | Phrase] = []
        for i in order[: rng.choice((1, 1, 2))]:
            where = None
            if first is not None and not pieces and rng.random() < 0.5:
                where = relation(self.scene.things[first], self.scene.things[i])
            pieces += [choose(rng, where) if where else rng.choice(BETWEEN), self._thing(i)]
        return pieces

    def _thing(self, number: int) -> Phrase:
        """Describe a thing; where nothing identifies it, as some of its kind (linked to none)."""
        thing = self.scene.things[number]
        wanted = self.rng.random() < self.difficulty.relations
        if wanted or not self.teller.telling[number]:
            text = self.teller.by_neighbour(number, "the")
            if text is not None:
                return Phrase(text, self._chain((number,)), ("other",))
        text = self.teller.by_attributes(number)
        if text is not None:
            article = self.rng.choice(("the", "an" if text[0] in "aeiou" else "a"))
            return Phrase(f"{article} {text}", self._chain((number,)), (TYPES[thing.shape],))
        return Phrase(f"some {Words(shape=thing.shape).spoken(self.rng)}", 0, ("notvisual",))

    def _group(self, group: tuple[int, ...]) -> Phrase:
        thing = self.scene.things[group[0]]
        kinds = [kind(thing, colour) for colour in (False, True)]
        words = self.rng.choice([words for words in kinds if those(self.scene, words) == group])
        number = self.rng.choice(NUMBERS[len(group)])
        text = f"{number} {words.spoken(self.rng, many=True)}"
        return Phrase(text, self._chain(group), ("people", TYPES[thing.shape]))


def vocabulary() -> list[str]:
    """Return every word of captions and expressions, in small letters, in order."""
    texts = [
        *world.SHAPES,
        *world.COLOURS,
        *world.MATERIALS,
        *world.SIZES,
        *world.TONES,
        *world.RELATIONS,
        *language.PLACES,
        OTHERS,
    ]
    texts += [*STARTS, *BETWEEN, *UNSEEN, *ABSENT, *BACKGROUNDS]
    texts += itertools.chain(*language.SAID.values(), *NUMBERS.values())
    texts += [plural(noun) for shape in world.SHAPES for noun in language.SAID.get(shape, (shape,))]
    return sorted({word for text in texts for word in text.lower().split()})
