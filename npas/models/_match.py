"""The outputs of networks that match sentences with images.

Such a network reads `words`, `lengths`, `ids` and `regions`, and its forward gives a `Match` of all
sentences with all images of a batch. It is made of three steps, which can be asked for alone where
everything is to be matched with everything: `encode_images(regions)`, `encode_sentences(words,
lengths, ids)` and `match(images, sentences)`.

Dimensions: B images, D numbers of each of their R regions, S sentences of T words of V numbers, E
numbers of what an image or a sentence becomes.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

EPSILON = 1e-4  # below the root of a distance, whose slope would be infinite at 0


class Match(NamedTuple):
    """How well each sentence fits each image, higher is better, and the sentences themselves.

    Of P sentences an image, sentence i is of image i // P.
    """

    similarity: Tensor  # SxB
    sentences: Tensor  # SxE, each of length 1


class Matcher(Protocol):
    """The steps of a network that matches sentences with images."""

    def encode_images(self, regions_BRD: Tensor) -> Tensor:
        """Return what images become, B x ..."""

    def encode_sentences(self, words_STV: Tensor, lengths_S: Tensor, ids_ST: Tensor) -> Tensor:
        """Return what sentences become, SxE."""

    def match(self, images_B: Tensor, sentences_SE: Tensor) -> Tensor:
        """Return how well each of these sentences fits each of these images, SxB."""


def distance(first_SE: Tensor, second_BE: Tensor) -> Tensor:
    """Return how far each of S vectors is from each of B others, SxB: never less than 0.01.

    As two-branch networks measure it; in float32 whatever autocast says.
    """
    far_SB = torch.cdist(first_SE, second_BE, compute_mode="use_mm_for_euclid_dist")
    return (far_SB.square() + EPSILON).sqrt()
