"""Render the pixels of a scene.

Dimensions: H rows, W columns of the image or of a thing's box.
"""

import functools
from collections.abc import Callable

import numpy as np

from npas.tasks.scenes.world import COLOURS, TONES, Scene

SLOPE = 15  # change of the background's grey from the middle to an edge
FINE = 4  # supersampling along each axis
PERIODS = 3  # of a pattern along each side
STAR = np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])


def render(scene: Scene, noise: float) -> np.ndarray:
    """Return the scene's pixels, uint8, HxWx3; `noise` is the standard deviation of each."""
    rng = np.random.default_rng((scene.seed, scene.number))
    down, across = rng.uniform(-SLOPE, SLOPE, 2)
    down_H1 = np.linspace(-down, down, scene.height, dtype=np.float32)[:, None]
    across_W = np.linspace(-across, across, scene.width, dtype=np.float32)
    grey_HW = TONES[scene.tone] + down_H1 + across_W
    pixels_HW3 = np.repeat(grey_HW[..., None], 3, 2)
    for thing in scene.things:
        colour = (COLOURS[thing.colour] + rng.normal(0, noise, 3)).astype(np.float32)
        left, top, right, bottom = thing.box
        height, width = bottom - top + 1, right - left + 1
        plain = np.array(COLOURS[thing.colour], dtype=np.float32)
        # The second colour of a pattern is darker, or lighter if the thing is dark.
        other = plain * 0.35 if plain.mean() > 90 else plain + (255 - plain) * 0.65
        own_HW3 = colour + _pattern(thing.material, height, width)[..., None] * (other - colour)
        mask_HW = _mask(thing.shape, height, width)[..., None]
        under_HW3 = pixels_HW3[top : bottom + 1, left : right + 1]
        under_HW3 += mask_HW * (own_HW3 - under_HW3)
    grain_HW = rng.standard_normal((scene.height, scene.width), dtype=np.float32)
    pixels_HW3 += np.float32(noise) * grain_HW[..., None]
    return pixels_HW3.clip(0, 255).astype(np.uint8)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the x (a row) and y (a column) of a box's sampling points, from -1 to 1."""
    down, across = (
        ((np.arange(side * FINE) + 0.5) / (side * FINE) * 2 - 1) for side in (height, width)
    )
    return across[None, :], down[:, None]


def _averaged(inside: np.ndarray, height: int, width: int) -> np.ndarray:
    found = np.broadcast_to(inside, (height * FINE, width * FINE))
    return found.reshape(height, FINE, width, FINE).mean((1, 3), dtype=np.float32)


@functools.lru_cache(maxsize=4096)
def _mask(shape: str, height: int, width: int) -> np.ndarray:
    """Return the fraction of each pixel that a shape filling the box covers, HxW."""
    return _averaged(INSIDE[shape](*_grid(height, width)), height, width)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # The star's tips are on a circle, but extend less than the radius to the sides and down.
    x = x * np.sin(2 * np.pi / 5)
    y = (y + 1) / 2 * (1 + STAR[0]) - 1
    angle = np.arctan2(x, -y) % (2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    along, beside = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    inner = 0.45 * STAR
    # Left of the line from the tip (1, 0) to the notch between two tips.
    return (along - 1) * inner[1] - beside * (inner[0] - 1) < 0


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lobes = np.hypot(np.abs(x) - 0.5, (y + 0.45) / 1.1) < 0.5
    return lobes | ((y > -0.45) & (np.abs(x) < (1 - y) / 1.45))


# Whether points, with coordinates from -1 to 1, are in the shape that fills the box.
INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) < 1,
    "ring": lambda x, y: (np.hypot(x, y) < 1) & (np.hypot(x, y) > 0.55),
    "triangle": lambda x, y: np.abs(x) < (y + 1) / 2,
    "cross": lambda x, y: np.minimum(np.abs(x), np.abs(y)) < 0.33,
    "diamond": lambda x, y: np.abs(x) + np.abs(y) < 1,
    "square": lambda x, y: np.full((1, 1), True),
    "heart": _heart,
    "star": _star,
}


@functools.lru_cache(maxsize=4096)
def _pattern(material: str, height: int, width: int) -> np.ndarray:
    """Return the fraction of the second colour in each pixel, HxW."""
    x, y = (np.pi * PERIODS * along for along in _grid(height, width))
    found = {
        "plain": np.full((1, 1), False),
        "striped": np.sin(y) > 0,
        "checked": (np.sin(x) > 0) ^ (np.sin(y) > 0),
        "dotted": np.cos(x) + np.cos(y) > 0.7,
    }
    return _averaged(found[material], height, width)
