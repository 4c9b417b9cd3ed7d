"""Show what was found: the images that fit a sentence best, and the sentences of an image.

Dimensions: F folds, N images of each, S = 5 N sentences.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from npas.tasks.base import Picture, Shown
from npas.tasks.retrieval import metrics
from npas.tasks.retrieval.reader import PER_IMAGE, Split

BEST = 5  # that are shown


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
    before_N, before_S = metrics.ranks(similarity_SN)
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
