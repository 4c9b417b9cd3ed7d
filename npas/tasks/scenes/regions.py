"""Propose regions of a scene, and compute features from their pixels.

Proposals imitate a detector's: boxes around things, more or less accurate, and around several
things, parts of things, or nothing. A region has two views: near, its own box, and far, a window of
fixed size around its centre, which shows its neighbours. A feature is the sum of the pixels in a
random patch of one view, with random signs that are constant over small blocks, clipped at 0. So
features encode colour, shape, material, size and neighbours, without naming them.

Dimensions: R regions, D features per region, V pixels of a view, H rows and W columns of the image.
"""

import math
from random import Random

import numpy as np

from npas.tasks.scenes.language import alike
from npas.tasks.scenes.world import Difficulty, Scene

NEAR, FAR = 12, 20  # pixels along the side of a view
MARGIN = 0.1  # of the near view around a box, as a fraction of its side
REACH = 0.6  # of the far view to each side, as a fraction of the square root of the image's area
GREY = 128
SCALE = 1 / 512  # a power of two, so that features are exact in any order of summation
LOOSE = 2.5  # jitter of a bad proposal, relative to a good one's
Box = tuple[float, float, float, float]


def propose(scene: Scene, difficulty: Difficulty, count: int) -> np.ndarray:
    """Return `count` boxes, Rx4, float32: left, top, right, bottom pixel, best first.

    If `count` allows, every thing and every group of similar things has a good one.
    """
    rng = scene.random("proposals")
    things: list[Box] = [thing.box for thing in scene.things]
    good = things + [union([things[i] for i in group]) for group in alike(scene)]
    found = [(1.0, _jittered(rng, box, difficulty.jitter)) for box in good[:count]]
    makers = (_loose, _anywhere, _several, _part)
    for i in range(count - len(found)):
        make = makers[i % len(makers)]
        box = make(rng, scene, difficulty, things[i // len(makers) % len(things)])
        found.append((0.5 if make is _loose else 0.0, box))
    scored = [(score + rng.gauss(0, 0.5), _inside(box, scene)) for score, box in found]
    return np.array([box for _, box in sorted(scored, reverse=True)], dtype=np.float32)


def union(boxes: list[Box]) -> Box:
    """Return the smallest box around the boxes."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def places(boxes_R4: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the edges and the area of boxes as fractions of the image's, Rx5, float32."""
    left_R, top_R, right_R, bottom_R = boxes_R4.T
    area_R = (right_R - left_R + 1) * (bottom_R - top_R + 1) / (width * height)
    edges_R4 = boxes_R4 / np.array([width, height] * 2, dtype=np.float32)
    return np.concatenate([edges_R4, area_R[:, None]], 1, dtype=np.float32)


def _jittered(rng: Random, box: Box, jitter: float) -> Box:
    sides = (box[2] - box[0] + 1, box[3] - box[1] + 1) * 2
    off = [max(-2.0, min(2.0, rng.gauss(0, 1))) * jitter for _ in range(4)]
    left, top, right, bottom = (
        edge + part * side for edge, part, side in zip(box, off, sides, strict=True)
    )
    return left, top, right, bottom


def _loose(rng: Random, scene: Scene, difficulty: Difficulty, box: Box) -> Box:
    return _jittered(rng, box, LOOSE * difficulty.jitter)


def _anywhere(rng: Random, scene: Scene, difficulty: Difficulty, box: Box) -> Box:
    """Draw a box of about a thing's size anywhere."""
    width, height = ((box[i + 2] - box[i]) * rng.uniform(0.7, 1.6) for i in (0, 1))
    left = rng.uniform(0, scene.width - width)
    top = rng.uniform(0, scene.height - height)
    return left, top, left + width, top + height


def _several(rng: Random, scene: Scene, difficulty: Difficulty, box: Box) -> Box:
    other = rng.choice(scene.things).box
    return _jittered(rng, union([box, other]), difficulty.jitter)


def _part(rng: Random, scene: Scene, difficulty: Difficulty, box: Box) -> Box:
    """Cut a third to a half off one side of a thing."""
    cut = list(box)
    side = rng.randrange(4)
    inward = (box[2] - box[0], box[3] - box[1])[side % 2] * rng.uniform(0.45, 0.6)
    cut[side] += inward if side < 2 else -inward
    return cut[0], cut[1], cut[2], cut[3]


def _inside(box: Box, scene: Scene) -> Box:
    """Round a box to pixels of the image, at least four along each side."""
    found: list[int] = []
    for low, high, size in ((box[0], box[2], scene.width), (box[1], box[3], scene.height)):
        first = min(max(0, round(low)), size - 4)
        found += [first, max(first + 3, min(size - 1, round(high)))]
    left, right, top, bottom = found
    return left, top, right, bottom


class Eyes:
    """Computes `width` features of regions, by random sums that depend on `width` only."""

    def __init__(self, width: int) -> None:
        rng = np.random.default_rng(width)
        # The first half of the features is of the near view, the rest of the far one.
        halves = ((NEAR, width - width // 2), (FAR, width // 2))
        self.sums = [_patches(rng, side, count) for side, count in halves]

    def see(self, pixels_HW3: np.ndarray, boxes_R4: np.ndarray) -> np.ndarray:
        seen = views(pixels_HW3, boxes_R4)
        found_RD = np.concatenate([v @ sums for v, sums in zip(seen, self.sums, strict=True)], 1)
        return np.maximum(found_RD, 0) * np.float32(SCALE)


def _patches(rng: np.random.Generator, side: int, count: int) -> np.ndarray:
    """Draw `count` patches of a view: the sign of each pixel, 0 outside, VxD, float32."""
    sums_DH3W = np.zeros((count, side, 3, side), dtype=np.float32)
    for own_H3W in sums_DH3W:
        high, wide = rng.integers(side // 3, side + 1, 2)
        top, left = rng.integers(0, side - high + 1), rng.integers(0, side - wide + 1)
        grain = rng.integers(1, side // 3 + 1)
        coarse = rng.integers(0, 2, (-(-high // grain), 3, -(-wide // grain))) * 2 - 1
        signs = coarse.repeat(grain, 0).repeat(grain, 2)[:high, :, :wide]
        own_H3W[top : top + high, :, left : left + wide] = signs
    return np.ascontiguousarray(sums_DH3W.reshape(count, 3 * side**2).T)


def views(pixels_HW3: np.ndarray, boxes_R4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the near and the far view of each region: integers in float32, RxV each.

    A pixel, in order of row, channel, column, is the mean over a rectangle minus `GREY`; 0 outside.
    """
    height, width = pixels_HW3.shape[:2]
    image_H3W = np.ascontiguousarray(pixels_HW3.transpose(0, 2, 1)).astype(np.float32) - GREY
    low_R2, high_R2 = boxes_R4[:, :2], boxes_R4[:, 2:] + 1
    margin_R2 = np.float32(MARGIN) * (high_R2 - low_R2)
    middle_R2, reach = (low_R2 + high_R2) / 2, np.float32(REACH * math.sqrt(height * width))
    near = _shrunk(image_H3W, low_R2 - margin_R2, high_R2 + margin_R2, NEAR)
    return near, _shrunk(image_H3W, middle_R2 - reach, middle_R2 + reach, FAR)


def _shrunk(
    image_H3W: np.ndarray, low_R2: np.ndarray, high_R2: np.ndarray, side: int
) -> np.ndarray:
    """Downsample rectangles of an image to `side` pixels along each side: S rows, T columns."""
    height, _, width = image_H3W.shape
    part_S = np.arange(side + 1, dtype=np.float32) / np.float32(side)
    edges_R2S = np.rint(low_R2[..., None] + part_S * (high_R2 - low_R2)[..., None])
    first_R2S = edges_R2S[..., :-1, None]
    last_R2S = np.maximum(edges_R2S[..., 1:, None], first_R2S + 1)
    x_W, y_H = (np.arange(size, dtype=np.float32) for size in (width, height))
    columns_RTW = ((x_W >= first_R2S[:, 0]) & (x_W < last_R2S[:, 0])).astype(np.float32)
    rows_RSH = ((y_H >= first_R2S[:, 1]) & (y_H < last_R2S[:, 1])).astype(np.float32)
    # Sums of integers below 2**24 are exact.
    half = rows_RSH.reshape(-1, height) @ image_H3W.reshape(height, -1)
    sums_RS3T = half.reshape(-1, side * 3, width) @ columns_RTW.transpose(0, 2, 1)
    count_R2S = (last_R2S - first_R2S)[..., 0]
    area_RS1T = count_R2S[:, 1, :, None, None] * count_R2S[:, 0, None, None, :]
    return np.rint(sums_RS3T.reshape(-1, side, 3, side) / area_RS1T).reshape(len(low_R2), -1)
