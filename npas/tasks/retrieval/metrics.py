"""Margin losses and recalls of image-sentence retrieval, and examples to show.

Losses: each sentence must be more similar to its image than either is to others. Recalls: ties with
the correct item, and NaN scores, rank before it, so that constant scores find nothing.

Dimensions: B images of a batch with P consecutive sentences each, S = B x P; in evaluation F folds
of N images, S = 5 N.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from npas.models._match import Match, distance
from npas.tasks.base import Picture, Shown, spread
from npas.tasks.retrieval.reader import PER_IMAGE, Split

TOP_K = (1, 5, 10)
TOP = 5  # results shown


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

    Wehrmann et al. 2020, whose code sums over the sentences instead of averaging, and masks only
    the diagonal; here all pairs of the same image are masked.
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

    The sum of the costs of images x `image_factor`, of sentences, and of pairs of sentences x
    `sentence_factor`: sentences of one image must be closer to each other than to others.
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


# --- recalls


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

    `i2t` is from an image to any of its sentences, `t2i` back. Each fold, SxN, is searched alone.
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
