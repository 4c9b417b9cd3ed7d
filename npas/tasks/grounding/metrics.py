"""Overlaps of boxes: which regions match a phrase, and which a network chose.

Boxes are left, top, right, bottom in pixels, and hold the pixels of their edges: one from 3 to 3 is
a pixel wide. That is how Flickr30K Entities measures (pl-clc, CITE).

Dimensions: P phrases, R regions, N phrases of a part, C types.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from npas.utils import rng

RIGHT = 0.5  # least overlap of a region that answers a phrase
NEG_IOU, NEG_IOU_FALLBACK = (
    0.3,
    0.4,
)  # negatives overlap less; where there are too few, the second counts


def overlaps(first_P4: Tensor, second_R4: Tensor) -> Tensor:
    """Return the intersection over the union of each box with each other one, PxR, float32.

    What comes in batches, BxPx4 and BxRx4, is compared batch by batch.
    """
    first_P14, second_1R4 = first_P4.double()[..., None, :], second_R4.double()[..., None, :, :]
    corner_PR2 = torch.maximum(first_P14[..., :2], second_1R4[..., :2])
    end_PR2 = torch.minimum(first_P14[..., 2:], second_1R4[..., 2:])
    shared_PR = (end_PR2 - corner_PR2 + 1).clamp(min=0).prod(-1)
    return (shared_PR / (_areas(first_P14) + _areas(second_1R4) - shared_PR)).float()


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + 1).prod(-1)


def labels(overlap_PR: Tensor, positive: float, negatives: int, key: int) -> Tensor:
    """Return 1, -1 or 0 for each phrase and region, int8: fits, does not, is not trained on.

    A region fits from an overlap of `positive` on. For each that does, `negatives` are drawn, by
    the key alone, of those that are far off. A phrase that no region fits has none of either.
    """
    fits_PR = overlap_PR >= positive
    wanted_P = negatives * fits_PR.sum(1)
    far_PR, less_far_PR = overlap_PR < NEG_IOU, overlap_PR < NEG_IOU_FALLBACK
    is_enough_P = far_PR.sum(1) >= wanted_P
    may_be_PR = torch.where(is_enough_P[:, None], far_PR, less_far_PR)
    place_PR = torch.arange(overlap_PR.numel()).view_as(overlap_PR)
    # The lowest draws are taken; those that may not be come after all others.
    draw_PR = rng.integers(key, place_PR, 2**31).masked_fill(~may_be_PR, 2**31)
    rank_PR = draw_PR.argsort(dim=1, stable=True).argsort(dim=1)
    drawn_PR = may_be_PR & (rank_PR < wanted_P[:, None])
    return fits_PR.to(torch.int8) - drawn_PR.to(torch.int8)


def compare(scores_BPR: Tensor, overlap_BPR: Tensor, regions_B: Tensor) -> tuple[Tensor, Tensor]:
    """Compare scores with overlaps; regions beyond an image's number repeat others.

    Returns three figures of each phrase, BxPx3, float64: whether the best scored region is right,
    whether any is, and what part of the regions are. And which the best scored one is, BxP.

    Of a tie for the best score the part that is right counts, so that scores that are all the same
    measure as chance does, and the first is named. A phrase with a NaN among its scores is wrong.
    """
    place_R = torch.arange(scores_BPR.shape[2], device=regions_B.device)
    is_region_B1R = place_R < regions_B[:, None, None]
    scores_BPR = scores_BPR.masked_fill(~is_region_B1R, -torch.inf)
    # The greatest of numbers with a NaN is NaN, which nothing equals.
    is_best_BPR = (scores_BPR == scores_BPR.amax(2, keepdim=True)) & is_region_B1R
    fits_BPR = (overlap_BPR >= RIGHT) & is_region_B1R
    right_BP = (is_best_BPR & fits_BPR).sum(2).double() / is_best_BPR.sum(2).clamp(min=1)
    share_BP = fits_BPR.sum(2).double() / regions_B[:, None]
    found_BP3 = torch.stack([right_BP, fits_BPR.any(2).double(), share_BP], 2)
    return found_BP3, is_best_BPR.byte().argmax(2)


def summarize(
    found_N3: np.ndarray, types: Sequence[str], is_type_NC: np.ndarray
) -> dict[str, float]:
    """Return means over phrases, in percent, of what `compare` finds of each.

    A phrase of several types counts for each of them; every type has some. One whose image has no
    features is 0 throughout.
    """
    names = ("accuracy", "oracle", "chance")
    found = {name: 100 * own_N.mean() for name, own_N in zip(names, found_N3.T, strict=True)}
    for name, of_N in zip(types, is_type_NC.T, strict=True):
        found[f"accuracy_{name}"] = 100 * found_N3[of_N, 0].mean()
    return {name: float(value) for name, value in found.items()}
