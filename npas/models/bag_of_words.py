"""A bag-of-words baseline for phrase grounding, without hidden layers.

A phrase is the mean of its word vectors. Phrase and region each go through one linear layer to
`width` numbers; the score is their dot product, divided by the root of `width`, plus a bias. So
each word contributes to the score independently of the others.

    D (V + F) weights, 2 D + 1 biases
    V 300, F 2048, D 256: 601,601 parameters; 1,280 more with the 5 numbers of a region's position

Dimensions: B images, P phrases and R regions of each, T words of a phrase, V numbers per word
vector, F features per region, D = `width`.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from npas.models import InputSpec, _phrases
from npas.utils.checks import Ranged

OUTPUTS = ("regions",)


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of the baseline; `boxes` appends a region's position to its features."""

    family: str = "bag_of_words"
    width: Annotated[int, "[1, 65536]"] = 256
    boxes: bool = True


class BagOfWords(nn.Module):
    """Score every region of an image for each of its phrases: BxPxR, higher is better.

    Inputs: words, BxPxTxV, zeros after the lengths, BxP; regions, BxRxF; their positions, BxRx5.
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
