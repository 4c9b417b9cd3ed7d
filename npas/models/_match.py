"""What networks that match sentences with images have in common: their steps and their output.

Dimensions: B images, D numbers of each of their R regions, S = B x P sentences of T words of V
numbers, E numbers of what an image or a sentence becomes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

EPSILON = 1e-4  # below the root of a distance, whose slope would be infinite at 0


class Match(NamedTuple):
    """How well each sentence fits each image, higher is better, and the sentences themselves.

    Of P sentences an image, sentence i is of image i // P.
    """

    similarity: Tensor  # SxB
    sentences: Tensor  # SxE, each of length 1


class Matcher(nn.Module):
    """Match all sentences of a batch with all images, in three steps that can be asked for alone.

    Words come as BxPxTxV, zeros from the lengths, BxP, on, their numbers as BxPxT, and regions as
    BxRxD.
    """

    def forward(self, words: Tensor, lengths: Tensor, regions: Tensor, ids: Tensor) -> Match:
        """Return the match of all sentences with all images, and the sentences."""
        images = self.encode_images(regions)
        flat = (given.flatten(0, 1) for given in (words, lengths, ids))
        sentences_SE = self.encode_sentences(*flat)
        return Match(self.match(images, sentences_SE), sentences_SE)

    def encode_images(self, regions_BRD: Tensor) -> Tensor:
        """Return what images become, B x ..."""
        raise AssertionError("a network has its own")

    def encode_sentences(self, words_STV: Tensor, lengths_S: Tensor, ids_ST: Tensor) -> Tensor:
        """Return what sentences become, SxE."""
        raise AssertionError("a network has its own")

    def match(self, images_B: Tensor, sentences_SE: Tensor) -> Tensor:
        """Return how well each of these sentences fits each of these images, SxB."""
        raise AssertionError("a network has its own")


def distance(first_SE: Tensor, second_BE: Tensor) -> Tensor:
    """Return how far each of S vectors is from each of B others, SxB: never less than 0.01.

    As two-branch networks measure it; in float32 whatever autocast says.
    """
    far_SB = torch.cdist(first_SE, second_BE, compute_mode="use_mm_for_euclid_dist")
    return (far_SB.square() + EPSILON).sqrt()
