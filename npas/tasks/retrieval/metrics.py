"""Count how often a sentence's image is among the first few, and an image's sentences.

A tie with the right one counts as before it, and so does NaN: a rank is an upper bound, and a
network that scores everything alike has found nothing.

Dimensions: N images, S = 5 N sentences, five of each image in a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from npas.tasks.retrieval.reader import PER_IMAGE

AMONG = (1, 5, 10)


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
