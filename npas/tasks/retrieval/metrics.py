"""Recall at K of image-sentence retrieval, and examples to show.

Ties with the correct item, and NaN scores, rank before it, so that constant scores find nothing.

Dimensions: F folds, N images of each, S = 5 N sentences, five consecutive ones per image.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from npas.tasks.base import Picture, Shown, spread
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

    `i2t` is from an image to any of its sentences, `t2i` from a sentence to its image.
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
    """Return a sentence of up to `count` images, spread evenly, with the most similar images."""
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder} is missing: set task.images to a folder under data.root")
    size, shown = similarity_FSN.shape[2], []
    for turn, index in enumerate(spread(len(images), count)):
        fold, image = divmod(index, size)
        sentence = turn % PER_IMAGE
        scores_N = similarity_FSN[fold, image * PER_IMAGE + sentence]
        pictures = []
        for n, i in enumerate(scores_N.argsort(descending=True, stable=True)[:TOP].tolist(), 1):
            name = images.names[fold * size + i]
            path = None if folder is None else folder / f"{name}.jpg"
            pictures.append(Picture(path, f"{n}. {name} ({scores_N[i]:.2f})", right=i == image))
        place = int((scores_N > scores_N[image]).sum()) + 1
        heading = images.captions[index * PER_IMAGE + sentence]
        shown.append(Shown(f"{heading}\nits image is number {place:,} of {size:,}", pictures))
    return shown
