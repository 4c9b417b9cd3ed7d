"""The base of networks that match sentences with images.

Dimensions: B images of R regions with D features, S = B x P sentences of T words with V numbers, E
numbers of an embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

EPSILON = 1e-4  # added to squared distances, since the root's slope is infinite at 0


class Match(NamedTuple):
    """The similarity of all sentences and images, and the sentences' embeddings.

    With P sentences per image, sentence i belongs to image i // P.
    """

    similarity: Tensor  # SxB, higher is better
    sentences: Tensor  # SxE, of norm 1


class Matcher(nn.Module):
    """Matches all sentences of a batch with all images; subclasses give the last three methods.

    Inputs: word vectors, BxPxTxV, zeros after the lengths, BxP; word ids, BxPxT; regions, BxRxD.
    """

    def forward(self, words: Tensor, lengths: Tensor, regions: Tensor, ids: Tensor) -> Match:
        images = self.encode_images(regions)
        flat = (given.flatten(0, 1) for given in (words, lengths, ids))
        sentences_SE = self.encode_sentences(*flat)
        return Match(self.match(images, sentences_SE), sentences_SE)

    def encode_images(self, regions_BRD: Tensor) -> Tensor:
        """Return the encoded images, B x ..."""
        raise AssertionError("implemented by subclasses")

    def encode_sentences(self, words_STV: Tensor, lengths_S: Tensor, ids_ST: Tensor) -> Tensor:
        """Return the embeddings of sentences, SxE."""
        raise AssertionError("implemented by subclasses")

    def match(self, images_B: Tensor, sentences_SE: Tensor) -> Tensor:
        """Return the similarity of each sentence and image, SxB."""
        raise AssertionError("implemented by subclasses")


def distance(first_SE: Tensor, second_BE: Tensor) -> Tensor:
    """Return the distances of two-branch networks, SxB, at least 0.01; float32 under autocast."""
    distance_SB = torch.cdist(first_SE, second_BE, compute_mode="use_mm_for_euclid_dist")
    return (distance_SB.square() + EPSILON).sqrt()
