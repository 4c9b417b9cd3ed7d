"""Count how often a sentence's image is among the first few, and an image's sentences; show some.

A tie with the right one counts as before it, and so does NaN: a rank is an upper bound, and a
network that scores everything alike has found nothing.

Dimensions: F folds, N images of each, S = 5 N sentences, five of each image in a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from npas.tasks.base import Picture, Shown
from npas.tasks.retrieval.reader import PER_IMAGE, Split

AMONG = (1, 5, 10)
BEST = 5  # that are shown


def ranks(similarity_SN: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many sentences rank before the best of each image's own five, N int64.

    And how many images rank before each sentence's own, S.
    """
    count = similarity_SN.shape[1]
    own_S = torch.arange(len(similarity_SN), device=similarity_SN.device) // PER_IMAGE
    right_S = similarity_SN.gather(1, own_S[:, None]).squeeze(1)
    # Not "at least", which is false for NaN. The right one is counted, too, and subtracted.
    image_S = (~(similarity_SN < right_S[:, None])).sum(1) - 1
    best_N = right_S.view(count, PER_IMAGE).amax(1)
    before_SN = ~(similarity_SN < best_N)
    of_own_N = before_SN.gather(1, own_S[:, None]).view(count, PER_IMAGE).sum(1)
    return before_SN.sum(0) - of_own_N, image_S


def recalls(folds: Iterable[Tensor]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 both ways and their mean, in percent, over folds of equal size.

    `i2t` is from an image to its sentences, of which one will do; `t2i` from a sentence to its
    image. Each fold is SxN, and is searched by itself.
    """
    found = [ranks(similarity_SN) for similarity_SN in folds]
    figures = {}
    for way, parts in zip(("i2t", "t2i"), zip(*found, strict=True), strict=True):
        all_ranks = torch.cat(parts)
        for most in AMONG:
            right = int((all_ranks < most).sum())
            figures[f"{way}_r{most}"] = 100 * right / len(all_ranks)
    return {"mr": sum(figures.values()) / len(figures), **figures}


def examples(similarity_FSN: Tensor, images: Split, folder: Path | None, count: int) -> list[Shown]:
    """Return up to `count` samples, spread over the images: by turns a sentence and an image.

    Whatever the network, they are the same. Images are in `folder`, as <name>.jpg; without one,
    they are told by name. ValueError if it is not there.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder} is not there: set task.images to a folder under data.root")
    count = min(count, len(images))
    places = [turn * len(images) // count for turn in range(count)]
    return [_example(similarity_FSN, images, folder, *turn) for turn in enumerate(places)]


def _example(
    similarity_FSN: Tensor, images: Split, folder: Path | None, turn: int, place: int
) -> Shown:
    """Ask for a sentence of an image, in even turns, or for the image."""
    fold, image = divmod(place, similarity_FSN.shape[2])
    similarity_SN = similarity_FSN[fold]
    names = images.names[place - image :][: similarity_SN.shape[1]]
    captions = images.captions[(place - image) * PER_IMAGE :][: len(similarity_SN)]
    before_N, before_S = ranks(similarity_SN)
    paths = [None if folder is None else folder / f"{name}.jpg" for name in names]
    if turn % 2 == 0:
        sentence = image * PER_IMAGE + turn // 2 % PER_IMAGE
        scores, best = similarity_SN[sentence].sort(descending=True, stable=True)
        pictures = [
            Picture(paths[i], f"{n}. {names[i]} ({score:.2f})", right=i == image)
            for n, score, i in zip(range(1, BEST + 1), scores.tolist(), best.tolist(), strict=False)
        ]
        where = f"its image comes as number {int(before_S[sentence]) + 1:,} of {len(names):,}"
        return Shown(f"{captions[sentence]}\n{where}", pictures)
    scores, best = similarity_SN[:, image].sort(descending=True, stable=True)
    pictures = [Picture(paths[image], names[image])] if folder else []
    pictures += [
        Picture(None, f"{n}. {captions[i]} ({score:.2f})", right=i // PER_IMAGE == image)
        for n, score, i in zip(range(1, BEST + 1), scores.tolist(), best.tolist(), strict=False)
    ]
    where = f"its best sentence comes as number {int(before_N[image]) + 1:,} of {len(captions):,}"
    return Shown(f"Image {names[image]}\n{where}", pictures)
