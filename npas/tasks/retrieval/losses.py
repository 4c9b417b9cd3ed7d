"""Margin losses: each sentence must be more similar to its image than either is to others.

Dimensions: B images, S = B x P sentences, P consecutive ones per image.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from npas.models._match import Match, distance


class Costs(NamedTuple):
    """Hinge losses of each sentence's pair against other images and sentences; 0 for its own."""

    images_SB: Tensor
    sentences_SS: Tensor
    same_SS: Tensor  # whether two sentences belong to the same image


def costs(similarity_SB: Tensor, image_B: Tensor, margin: float) -> Costs:
    """Compare each sentence's pair with all others of a batch; `image_B` are image indices."""
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
    """Return the index in the batch of each sentence's image, S."""
    sentences, images = similarity_SB.shape
    return torch.arange(sentences, device=similarity_SB.device) // (sentences // images)


def hardest(costs: Costs, weight: Tensor) -> Tensor:
    """Return ADAPT's loss per sentence: (1 - `weight`) x all costs + `weight` x the greatest costs.

    Wehrmann et al. 2020, whose code sums over the sentences, and masks only the diagonal.
    """
    images_SB, sentences_SS, _ = costs
    total = images_SB.sum() + sentences_SS.sum()
    greatest = images_SB.amax(1).sum() + sentences_SS.amax(1).sum()
    return ((1 - weight) * total + weight * greatest) / len(images_SB)


def top(
    costs: Costs, match: Match, margin: float, negatives: int, image_factor: float,
    sentence_factor: float,
) -> Tensor:  # fmt: skip
    """Return the loss of two-branch networks (Wang et al. 2018): means over `negatives` top costs.

    Those of images x `image_factor`, of sentences, and x `sentence_factor` of pairs of sentences:
    those of one image must be closer to each other than to others.
    """
    images_SB, sentences_SS, same_SS = costs
    count, images = images_SB.shape
    others = count // images * (images - 1)
    if others == 0:
        return images_SB.sum()  # 0: a single image
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
