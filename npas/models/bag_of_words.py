"""Build the baseline of phrase grounding: words without an order, and no hidden layer.

A phrase is the mean of its word vectors. It and a region go through one linear layer each, to
`width` numbers; the score is their dot product, by the root of `width`, plus a bias. Every word so
has its say about every feature of a region alone, whatever the other words are: what a network
makes of relations and of words together shows in how far it comes beyond this.

With D = `width`, of V numbers a word and F numbers a region: D (V + F) weights, 2 D + 1 biases.

    V 300, F 2048, D 256: 601,601 parameters; 1,280 more with the 5 numbers of a region's place

Dimensions: B images, P phrases and R regions of each, T words of a phrase; V, F and D as above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npas.models import InputSpec, _checks, _phrases

OUTPUTS = ("regions",)


@dataclass
class Config:
    """The `model.*` keys of the baseline. ValueError for a width out of range."""

    family: str = "bag_of_words"
    width: int = 256
    boxes: bool = True

    def __post_init__(self) -> None:
        _checks.in_range(self, width=(1, 65536))


class BagOfWords(nn.Module):
    """Score every region of an image for each of its phrases: BxPxR, higher where it fits better.

    Words come as BxPxTxV, zeros from the lengths, BxP, on; regions as BxRxF, their places as BxRx5.
    """

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        self.boxes, self.scale = config.boxes, 1 / math.sqrt(config.width)
        box = spec.width("boxes") if config.boxes else 0
        self.phrase = nn.Linear(spec.width("words"), config.width)
        self.region = nn.Linear(spec.width("regions") + box, config.width)
        self.bias = nn.Parameter(torch.zeros(()))
        _phrases.glorot(self)

    def forward(self, words: Tensor, lengths: Tensor, regions: Tensor, boxes: Tensor) -> Tensor:
        if self.boxes:
            regions = torch.cat([regions, boxes.to(regions.dtype)], 2)
        phrases_WV = _phrases.mean(words.flatten(0, 1), lengths.flatten())
        phrases_BPD = self.phrase(phrases_WV).unflatten(0, lengths.shape)
        return phrases_BPD @ self.region(regions).mT * self.scale + self.bias


build = BagOfWords
