"""Overlaps of boxes, training labels, and the metrics of phrase grounding.

Boxes are left, top, right, bottom in pixels, inclusive: one from 3 to 3 is a pixel wide, as in
the evaluation of Flickr30K Entities (pl-clc, CITE).

Dimensions: B images, P phrases, R regions, N phrases of a split, C types.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from npas.utils import rng

RIGHT = 0.5  # smallest overlap of a correct region
# Negatives overlap less than the first; if these are too few, less than the second.
NEG_IOU, NEG_IOU_FALLBACK = 0.3, 0.4


def overlaps(first_P4: Tensor, second_R4: Tensor) -> Tensor:
    """Return the intersection over union of each pair of boxes, PxR or BxPxR, float32."""
    first_P14, second_1R4 = first_P4.double()[..., None, :], second_R4.double()[..., None, :, :]
    corner_PR2 = torch.maximum(first_P14[..., :2], second_1R4[..., :2])
    end_PR2 = torch.minimum(first_P14[..., 2:], second_1R4[..., 2:])
    shared_PR = (end_PR2 - corner_PR2 + 1).clamp(min=0).prod(-1)
    return (shared_PR / (_areas(first_P14) + _areas(second_1R4) - shared_PR)).float()


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + 1).prod(-1)


def labels(overlap_PR: Tensor, positive: float, negatives: int, key: int) -> Tensor:
    """Return PxR labels, int8: 1 for positives, -1 for negatives, 0 for pairs not trained on.

    Positives overlap by at least `positive`; for each, `key` seeds `negatives` that overlap little.
    """
    fits_PR = overlap_PR >= positive
    wanted_P = negatives * fits_PR.sum(1)
    far_PR, less_far_PR = overlap_PR < NEG_IOU, overlap_PR < NEG_IOU_FALLBACK
    is_enough_P = far_PR.sum(1) >= wanted_P
    allowed_PR = torch.where(is_enough_P[:, None], far_PR, less_far_PR)
    counter_PR = torch.arange(overlap_PR.numel()).view_as(overlap_PR)
    # The lowest draws are taken; regions that are not allowed are sorted last.
    draw_PR = rng.integers(key, counter_PR, 2**31).masked_fill(~allowed_PR, 2**31)
    rank_PR = draw_PR.argsort(dim=1, stable=True).argsort(dim=1)
    drawn_PR = allowed_PR & (rank_PR < wanted_P[:, None])
    return fits_PR.to(torch.int8) - drawn_PR.to(torch.int8)


def compare(scores_BPR: Tensor, overlap_BPR: Tensor, regions_B: Tensor) -> tuple[Tensor, Tensor]:
    """Compare scores with overlaps of an image's first `regions_B` regions; the others repeat them.

    Returns three figures per phrase, BxPx3, float64: whether the best scored region is correct,
    whether any region is, and the fraction of regions that are. Also returns the index of the best
    scored region, BxP: the first one of a tie.

    Of regions tied for the best score, the fraction that is correct counts, so that constant
    scores measure as chance. A phrase with a NaN score is wrong.
    """
    index_R = torch.arange(scores_BPR.shape[2], device=regions_B.device)
    is_region_B1R = index_R < regions_B[:, None, None]
    scores_BPR = scores_BPR.masked_fill(~is_region_B1R, -torch.inf)
    # The maximum of scores with a NaN is NaN, which equals nothing.
    is_best_BPR = (scores_BPR == scores_BPR.amax(2, keepdim=True)) & is_region_B1R
    fits_BPR = (overlap_BPR >= RIGHT) & is_region_B1R
    right_BP = (is_best_BPR & fits_BPR).sum(2).double() / is_best_BPR.sum(2).clamp(min=1)
    share_BP = fits_BPR.sum(2).double() / regions_B[:, None]
    found_BP3 = torch.stack([right_BP, fits_BPR.any(2).double(), share_BP], 2)
    return found_BP3, is_best_BPR.byte().argmax(2)


def summarize(
    found_N3: np.ndarray, types: Sequence[str], is_type_NC: np.ndarray
) -> dict[str, float]:
    """Return the means over phrases, in percent, of the three figures of `compare`.

    Also returns the accuracy of each type; a phrase of several types counts for each of them.
    """
    names = ("accuracy", "oracle", "chance")
    found = {name: 100 * own_N.mean() for name, own_N in zip(names, found_N3.T, strict=True)}
    for name, of_N in zip(types, is_type_NC.T, strict=True):
        found[f"accuracy_{name}"] = 100 * found_N3[of_N, 0].mean()
    return {name: float(value) for name, value in found.items()}
