"""Ask of each sentence and its image that they fit better, by a margin, than either with others.

Dimensions: B images, S = B x P sentences, P of each image in a row, E numbers of a sentence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npas.models._match import Match, distance


class Costs(NamedTuple):
    """By how much each sentence's pair falls short of the margin: 0 where it does not.

    Beside another image, SxB, and beside another sentence, SxS; 0 also where that is of the same
    image, which may be in a batch several times.
    """

    images_SB: Tensor
    sentences_SS: Tensor
    same_SS: Tensor  # whether two sentences are of one image


def costs(similarity_SB: Tensor, image_B: Tensor, margin: float) -> Costs:
    """Compare each sentence's pair with all others of a batch; `image_B` tells images apart."""
    own_S = owners(similarity_SB)
    image_S = image_B[own_S]
    right_S1 = similarity_SB.gather(1, own_S[:, None])
    same_SS = image_S[:, None] == image_S
    images_SB = (margin + similarity_SB - right_S1).clamp(min=0)
    sentences_SS = (margin + similarity_SB.t()[own_S] - right_S1).clamp(min=0)
    return Costs(
        images_SB.masked_fill(image_S[:, None] == image_B, 0),
        sentences_SS.masked_fill(same_SS, 0),
        same_SS,
    )


def owners(similarity_SB: Tensor) -> Tensor:
    """Return which image of the batch each sentence is of, S."""
    sentences, images = similarity_SB.shape
    return torch.arange(sentences, device=similarity_SB.device) // (sentences // images)


def hardest(costs: Costs, weight: Tensor) -> Tensor:
    """Return the mean over sentences: of their greatest costs and, less `weight`, of all costs.

    As ADAPT is trained (Wehrmann et al. 2020), whose code adds up and does not divide: its sum over
    a batch is this one times the number of sentences, and masks the diagonal alone, where here all
    pairs of the same image are. `weight` goes from 0, all costs alike, to 1.
    """
    images_SB, sentences_SS, _ = costs
    total = images_SB.sum() + sentences_SS.sum()
    greatest = images_SB.amax(1).sum() + sentences_SS.amax(1).sum()
    return ((1 - weight) * total + weight * greatest) / len(images_SB)


def top(
    costs: Costs,
    match: Match,
    margin: float,
    negatives: int,
    image_factor: float,
    sentence_factor: float,
) -> Tensor:
    """Return the mean of each sentence's `negatives` greatest costs, as two-branch networks do.

    Of images times `image_factor`, of sentences, and times `sentence_factor` of sentences among
    themselves: those of one image are to be nearer to each other, all of them, than to others
    (Wang et al. 2018).
    """
    images_SB, sentences_SS, same_SS = costs
    count, images = images_SB.shape
    others = count // images * (images - 1)
    if others == 0:
        return images_SB.sum()  # nothing to compare with: 0
    loss = image_factor * _greatest(images_SB, min(negatives, images - 1))
    loss = loss + _greatest(sentences_SS, min(negatives, others))
    if sentence_factor:
        far_SS = distance(match.sentences, match.sentences)
        farthest_S1 = far_SS.masked_fill(~same_SS, -torch.inf).amax(1, keepdim=True)
        among_SS = (margin + farthest_S1 - far_SS).clamp(min=0).masked_fill(same_SS, 0)
        loss = loss + sentence_factor * _greatest(among_SS, min(negatives, others))
    return loss


def _greatest(costs: Tensor, most: int) -> Tensor:
    return costs.topk(most, dim=1).values.mean()
