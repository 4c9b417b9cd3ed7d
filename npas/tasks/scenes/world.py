"""Draw scenes: a few things, each with a shape, a colour, a size, a material and a box.

A scene is a function of a seed and its number. The things of a scene have few different shapes and
colours, so that it often takes several words, or a neighbour, to identify one.
"""

import itertools
import math
from dataclasses import dataclass
from random import Random
from typing import Annotated

from npas.utils.checks import Ranged, within

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS = {  # RGB
    "red": (205, 45, 40),
    "blue": (45, 80, 205),
    "green": (50, 160, 65),
    "yellow": (235, 210, 60),
    "purple": (140, 60, 165),
    "orange": (240, 140, 40),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
MATERIALS = ("plain", "striped", "dotted", "checked")
# Side lengths, as fractions of the square root of the image's area; and which of them are used.
SIZES = {"small": 0.15, "medium": 0.21, "large": 0.28}
SIZES_OF = {1: ("medium",), 2: ("small", "large"), 3: ("small", "medium", "large")}
TONES = {"dark": 70, "pale": 170}  # grey of a background
RELATIONS = ("left of", "right of", "above", "below")

MOST_HIDDEN = 0.2  # fraction of a box that another may overlap
ATTEMPTS = 30  # to position a thing
CLEAR = 1.25  # ratio of the two offsets from which a relation is clear


@dataclass(frozen=True)
class Difficulty(Ranged, section="task.scenes."):
    """The `task.scenes.*` keys: what is in a scene and how it is described."""

    least: Annotated[int, "[2, 8]"] = 4  # things in a scene
    most: Annotated[int, "[2, 8]"] = 7
    shapes: Annotated[int, "[1, 8]"] = 5  # number of kinds, as the next three
    colours: Annotated[int, "[1, 8]"] = 6
    sizes: Annotated[int, "[1, 3]"] = 2
    materials: Annotated[int, "[1, 4]"] = 3
    # Most shapes, and colours, in one scene: fewer make things more similar.
    palette: Annotated[int, "[1, inf)"] = 3
    relations: Annotated[float, "[0, 1]"] = 0.35  # fraction of phrases that refer by a neighbour
    # Fraction of captions with an "it", which alone identifies no box.
    pronouns: Annotated[float, "[0, 1]"] = 0.1
    groups: Annotated[float, "[0, 1]"] = 0.15  # fraction of captions about several things at once
    # Boxes per image; those that are not of things are distractors.
    proposals: Annotated[int, "[1, 1000]"] = 20
    jitter: Annotated[float, "[0, 0.5]"] = 0.1  # of a proposal's edges, as a fraction of the side
    noise: Annotated[float, "[0, 100]"] = 10.0  # standard deviation of pixels and colours, of 255
    height: Annotated[int, "[64, 1024]"] = 96  # pixels
    width: Annotated[int, "[64, 1024]"] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        within("task.scenes.most", self.most, f"[{self.least}, inf)")
        within("task.scenes.proposals", self.proposals, f"[{self.most}, inf)")
        if max(self.height, self.width) > 2 * min(self.height, self.width):
            raise ValueError("task.scenes.height and width: one may be at most twice the other")


@dataclass(frozen=True)
class Thing:
    """A thing and its box: left, top, right, bottom pixel, inclusive."""

    shape: str
    colour: str
    size: str
    material: str
    box: tuple[int, int, int, int]

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """Return size, colour, material and shape, in the order of a phrase."""
        return self.size, self.colour, self.material, self.shape

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """A scene: a background and things, later ones in front of earlier ones."""

    seed: int
    number: int
    height: int
    width: int
    tone: str  # of the background
    things: tuple[Thing, ...]

    def random(self, purpose: str) -> Random:
        """Return a generator seeded by this scene and `purpose`."""
        return Random(f"{purpose} {self.seed} {self.number}")


def draw_scene(difficulty: Difficulty, seed: int, number: int) -> Scene:
    """Draw scene `number`; redraws it if its things do not fit."""
    for attempt in itertools.count():
        rng = Random(f"scene {seed} {number} {attempt}")
        if things := _things(rng, difficulty):
            tone = rng.choice(list(TONES))
            return Scene(seed, number, difficulty.height, difficulty.width, tone, things)
    raise AssertionError


def _things(rng: Random, difficulty: Difficulty) -> tuple[Thing, ...]:
    """Draw things; returns () if one of them does not fit."""
    palette = difficulty.palette
    shapes = rng.sample(SHAPES[: difficulty.shapes], min(palette, difficulty.shapes))
    colours = rng.sample(list(COLOURS)[: difficulty.colours], min(palette, difficulty.colours))
    things: list[Thing] = []
    for _ in range(rng.randint(difficulty.least, difficulty.most)):
        size = rng.choice(SIZES_OF[difficulty.sizes])
        box = _place(rng, difficulty, size, things)
        if box is None:
            return ()
        material = rng.choice(MATERIALS[: difficulty.materials])
        things.append(Thing(rng.choice(shapes), rng.choice(colours), size, material, box))
    return tuple(things)


def _place(
    rng: Random, difficulty: Difficulty, size: str, things: list[Thing]
) -> tuple[int, int, int, int] | None:
    """Draw a box that overlaps the others little; returns None if there is none."""
    side = SIZES[size] * math.sqrt(difficulty.height * difficulty.width) * rng.uniform(0.93, 1.07)
    stretch = rng.uniform(0.92, 1.08)
    width, height = round(side * stretch), round(side / stretch)
    for _ in range(ATTEMPTS):
        left = rng.randrange(1, difficulty.width - width)
        top = rng.randrange(1, difficulty.height - height)
        box = (left, top, left + width - 1, top + height - 1)
        if all(_hidden(box, other.box) <= MOST_HIDDEN for other in things):
            return box
    return None


def _hidden(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Return the intersection of two boxes as a fraction of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return max(0, width) * max(0, height) / min(areas)


def relation(thing: Thing, other: Thing) -> str | None:
    """Return the relation of a thing to another, from `RELATIONS`; None if it is not clear."""
    across, down = (a - b for a, b in zip(thing.centre, other.centre, strict=True))
    if abs(across) > CLEAR * abs(down):
        return "left of" if across < 0 else "right of"
    if abs(down) > CLEAR * abs(across):
        return "above" if down < 0 else "below"
    return None
