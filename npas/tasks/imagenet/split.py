"""Choose the training images of ImageNet that are held out, the same in every run."""

import torch
from torch import Tensor

from npas.tasks.classification import SPLIT_SEED
from npas.utils import rng


def hold_out(labels_N: Tensor, count: int) -> Tensor:
    """Choose `count` images, as many of each class as can be, by a rule that no seed changes: N.

    ValueError if a class would be left with none.
    """
    rank_N = rng.bits(rng.derive_key(SPLIT_SEED, "imagenet validation"), _numbers(labels_N))
    by_class_N = rank_N.argsort(stable=True)
    by_class_N = by_class_N[labels_N[by_class_N].argsort(stable=True)]  # within each, by rank
    sizes_K = labels_N.bincount()
    starts_N = (sizes_K.cumsum(0) - sizes_K).repeat_interleave(sizes_K)
    # The first image of every class comes first, then the second of every class, and so on.
    turn_N = torch.empty_like(labels_N)
    turn_N[by_class_N] = _numbers(labels_N) - starts_N
    chosen = (turn_N * len(sizes_K) + labels_N).argsort(stable=True)[:count]
    held_N = torch.zeros(len(labels_N), dtype=torch.bool)
    held_N[chosen] = True
    left_K = labels_N[~held_N].bincount(minlength=len(sizes_K))
    if count and int(left_K[sizes_K > 0].min()) == 0:
        raise ValueError(
            f"task.held_out={count} of {len(labels_N):,} training images would leave a class with"
            " none to train on: hold out fewer"
        )
    return held_N


def _numbers(labels_N: Tensor) -> Tensor:
    return torch.arange(len(labels_N))
