"""Recall at K of image-sentence retrieval, and examples to show.

Ties with the correct item, and NaN scores, rank before it, so that constant scores find nothing.

Dimensions: F folds, N images of each, S = 5 N sentences, five consecutive ones per image.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from npas.tasks.base import Picture, Shown
from npas.tasks.retrieval.reader import PER_IMAGE, Split

TOP_K = (1, 5, 10)
TOP = 5  # results shown


def ranks(similarity_SN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ranks from 0 of each image's best sentence, N, and of each sentence's image, S."""
    count = similarity_SN.shape[1]
    own_S = torch.arange(len(similarity_SN), device=similarity_SN.device) // PER_IMAGE
    right_S = similarity_SN.gather(1, own_S[:, None]).squeeze(1)
    # Not ">=", which is false for NaN. The correct image is counted too, and subtracted.
    image_S = (~(similarity_SN < right_S[:, None])).sum(1) - 1
    best_N = right_S.view(count, PER_IMAGE).amax(1)
    before_SN = ~(similarity_SN < best_N)
    of_own_N = before_SN.gather(1, own_S[:, None]).view(count, PER_IMAGE).sum(1)
    return before_SN.sum(0) - of_own_N, image_S


def recalls(folds: Iterable[Tensor]) -> dict[str, float]:
    """Return R@1, R@5 and R@10 in both directions and their mean, in percent, over equal folds.

    `i2t` is from an image to any of its sentences, `t2i` from a sentence to its image. Each fold,
    SxN, is searched separately.
    """
    found = [ranks(similarity_SN) for similarity_SN in folds]
    figures = {}
    for direction, parts in zip(("i2t", "t2i"), zip(*found, strict=True), strict=True):
        all_ranks = torch.cat(parts)
        for most in TOP_K:
            right = int((all_ranks < most).sum())
            figures[f"{direction}_r{most}"] = 100 * right / len(all_ranks)
    return {"mr": sum(figures.values()) / len(figures), **figures}


def examples(similarity_FSN: Tensor, images: Split, folder: Path | None, count: int) -> list[Shown]:
    """Return up to `count` queries, spread over the images: alternately a sentence and an image.

    They do not depend on the network. Images are `folder`/<name>.jpg; without a folder, only their
    names are shown. Raises ValueError if the folder is missing.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder} is missing: set task.images to a folder under data.root")
    count = min(count, len(images))
    indices = [turn * len(images) // count for turn in range(count)]
    return [_example(similarity_FSN, images, folder, *turn) for turn in enumerate(indices)]


def _example(
    similarity_FSN: Tensor, images: Split, folder: Path | None, turn: int, index: int
) -> Shown:
    """Return the results of a sentence of an image, in even turns, or of the image."""
    fold, image = divmod(index, similarity_FSN.shape[2])
    similarity_SN = similarity_FSN[fold]
    names = images.names[index - image :][: similarity_SN.shape[1]]
    captions = images.captions[(index - image) * PER_IMAGE :][: len(similarity_SN)]
    before_N, before_S = ranks(similarity_SN)
    paths = [None if folder is None else folder / f"{name}.jpg" for name in names]
    if turn % 2 == 0:
        sentence = image * PER_IMAGE + turn // 2 % PER_IMAGE
        scores, best = similarity_SN[sentence].sort(descending=True, stable=True)
        pictures = [
            Picture(paths[i], f"{n}. {names[i]} ({score:.2f})", right=i == image)
            for n, score, i in zip(range(1, TOP + 1), scores.tolist(), best.tolist(), strict=False)
        ]
        where = f"its image is number {int(before_S[sentence]) + 1:,} of {len(names):,}"
        return Shown(f"{captions[sentence]}\n{where}", pictures)
    scores, best = similarity_SN[:, image].sort(descending=True, stable=True)
    pictures = [Picture(paths[image], names[image])] if folder else []
    pictures += [
        Picture(None, f"{n}. {captions[i]} ({score:.2f})", right=i // PER_IMAGE == image)
        for n, score, i in zip(range(1, TOP + 1), scores.tolist(), best.tolist(), strict=False)
    ]
    where = f"its best sentence is number {int(before_N[image]) + 1:,} of {len(captions):,}"
    return Shown(f"Image {names[image]}\n{where}", pictures)
