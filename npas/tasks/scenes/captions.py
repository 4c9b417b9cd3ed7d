"""Generate captions of a scene, with phrases linked to the things that they refer to.

A phrase about one thing is true of that thing only; one about several refers to all things that it
is true of. Like people's, phrases also refer back ("it"), to the background, to absent things, and
to nothing visible.

Types have the names of Flickr30K Entities, but here they are kinds of difficulty, so that accuracy
by type shows what was learned: `animals` are round, `vehicles` square and `instruments` pointed
things, identified by their attributes; `other` are identified by a neighbour (or absent), `people`
are groups, and `clothing` is an "it", which only the caption could resolve.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from npas.tasks.scenes import language, world
from npas.tasks.scenes.language import Describer, Words, alike, choose, kind, matching, plural
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
# Fractions of captions that mention these; the last among captions without a background.
UNSEEN_PART, BACKGROUND_PART, ABSENT_PART = 0.15, 0.2, 0.05


@dataclass(frozen=True)
class Phrase:
    """A phrase and the chain that it belongs to, 0 if it refers to nothing visible."""

    text: str
    chain: int
    types: tuple[str, ...]


Caption = tuple[str | Phrase, ...]


@dataclass(frozen=True)
class Story:
    """A scene's captions, and what each chain refers to: things, "scene", or absent ones."""

    captions: tuple[Caption, ...]
    chains: dict[int, tuple[int, ...] | str]


def marked(caption: Caption) -> str:
    """Format a caption as in Flickr30K Entities, with `[/EN#chain/type words]` for a phrase."""
    pieces = [
        f"[/EN#{'/'.join((str(piece.chain), *piece.types))} {piece.text}]"
        if isinstance(piece, Phrase)
        else piece
        for piece in caption
    ]
    return " ".join(pieces)


def plain(caption: Caption) -> str:
    """Return a caption's text."""
    return " ".join(piece.text if isinstance(piece, Phrase) else piece for piece in caption)


def tell(scene: Scene, difficulty: Difficulty) -> Story:
    """Return five captions of a scene."""
    captioner = _Captioner(scene, difficulty)
    captions = tuple(captioner.caption() for _ in range(CAPTIONS))
    return Story(captions, {chain: meant for meant, chain in captioner.chains.items()})


class _Captioner:
    """Generates captions of one scene, with chain numbers that are unique over scenes."""

    def __init__(self, scene: Scene, difficulty: Difficulty) -> None:
        self.scene = scene
        self.difficulty = difficulty
        self.rng = scene.random("captions")
        self.describer = Describer(self.rng, scene, difficulty)
        self.groups = alike(scene)
        self.chains: dict[tuple[int, ...] | str, int] = {}  # by what they refer to

    def _chain(self, meaning: tuple[int, ...] | str) -> int:
        return self.chains.setdefault(meaning, self.scene.number * 100 + len(self.chains) + 1)

    def caption(self) -> Caption:
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
        # A thing that no phrase identifies has no chain to refer back to.
        has_chain = (first,) in self.chains
        if first is not None and has_chain and rng.random() < self.difficulty.pronouns:
            thing = self.scene.things[first]
            it = Phrase("it", self._chain((first,)), ("clothing",))
            attribute = rng.choice((thing.size, thing.colour, thing.material))
            pieces += [",", it, "is", choose(rng, attribute)]
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
        """Mention one or two more things, the first by its relation in half of the cases."""
        rng = self.rng
        pieces: list[str | Phrase] = []
        for i in order[: rng.choice((1, 1, 2))]:
            where = None
            if first is not None and not pieces and rng.random() < 0.5:
                where = relation(self.scene.things[first], self.scene.things[i])
            pieces += [choose(rng, where) if where else rng.choice(BETWEEN), self._thing(i)]
        return pieces

    def _thing(self, number: int) -> Phrase:
        """Describe a thing; if nothing identifies it, as "some" of its shape, without a chain."""
        thing = self.scene.things[number]
        wanted = self.rng.random() < self.difficulty.relations
        if wanted or not self.describer.unique[number]:
            text = self.describer.by_neighbour(number, "the")
            if text is not None:
                return Phrase(text, self._chain((number,)), ("other",))
        text = self.describer.by_attributes(number)
        if text is not None:
            article = self.rng.choice(("the", "an" if text[0] in "aeiou" else "a"))
            return Phrase(f"{article} {text}", self._chain((number,)), (TYPES[thing.shape],))
        return Phrase(f"some {Words(shape=thing.shape).phrase(self.rng)}", 0, ("notvisual",))

    def _group(self, group: tuple[int, ...]) -> Phrase:
        thing = self.scene.things[group[0]]
        kinds = [kind(thing, colour) for colour in (False, True)]
        words = self.rng.choice([words for words in kinds if matching(self.scene, words) == group])
        number = self.rng.choice(NUMBERS[len(group)])
        text = f"{number} {words.phrase(self.rng, many=True)}"
        return Phrase(text, self._chain(group), ("people", TYPES[thing.shape]))


def vocabulary() -> list[str]:
    """Return all words of captions and expressions, in lower case, sorted."""
    texts = [*world.SHAPES, *world.COLOURS, *world.MATERIALS, *world.SIZES, *world.TONES]
    texts += [*world.RELATIONS, *language.PLACES, OTHERS]
    texts += [*STARTS, *BETWEEN, *UNSEEN, *ABSENT, *BACKGROUNDS]
    texts += itertools.chain(*language.SYNONYMS.values(), *NUMBERS.values())
    nouns = itertools.chain(*(language.SYNONYMS.get(shape, (shape,)) for shape in world.SHAPES))
    texts += map(plural, nouns)
    return sorted({word for text in texts for word in text.lower().split()})
