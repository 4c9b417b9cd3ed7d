"""Build the similarity network for phrase grounding: how well each phrase fits each region.

Of Wang et al. (TPAMI 2018, arXiv 1704.03470), in the form of Plummer et al.'s CITE (ECCV 2018),
whose network it is at one concept layer. A phrase and a region go through a branch of two linear
layers each; their product, number by number, through two more, and a last one gives the score.
With D = `width`, of V numbers a word and F numbers a region, the weights are

    phrase V x 4D, 4D x 4D; region F x 4D, 4D x 4D; joint 4D x 4D, 4D x D, D x 1:
    4D (V + F) + 3 (4D)^2 + 4D x D + D

    V 300, F 2048, D 256: 5,812,480 weights; 6,656 of batch norms and 2,049 biases: 5,821,185
    V 6000, as the authors' vectors have: 11,649,280 weights; 11,657,985 in all

`boxes` joins the 5 numbers of a region's place to its features: 20 D weights more. A linear layer
before a batch norm has no bias, which the norm would take away.

`embeddings` above 1, K, has as many layers 4D x D side by side, CITE's concepts, mixed by what a
branch V x 4D, 4D x K makes of the phrase: the others' weights grow by (K - 1) 4D x D + 4D (V + K).
The authors' L1 penalty on that branch is left out: softmax follows, and at K = 4 it weighs 5e-5.
`phrase` says how words become a phrase: their mean; a weighted one, of 2 V weights; or the last
state of a GRU of D numbers, 3 D (V + D) weights, whose branch is a single layer D x 4D.

Both branches end in vectors of length 1, as the authors say, times the root of how many numbers
these are: what the joint layer's batch norm gets would be too small beside its epsilon.
`normalize: regions` is the form that their code has: a feature's length is taken over the regions
of an image. They do so over its phrases, too; here a phrase's score depends on no other phrase.

Dimensions: B images, P phrases and R regions of each, T words of a phrase, V and F as above, H = 4D
numbers of what is hidden, D, K concepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _checks, _phrases

OUTPUTS = ("regions",)


@dataclass
class Config:
    """The `model.*` keys of a similarity network. ValueError for what cannot be built."""

    family: str = "simnet"
    width: int = 256  # D; what is hidden is four times as wide
    phrase: Literal["mean", "attention", "gru"] = "mean"
    embeddings: int = 1  # concept layers, K
    boxes: bool = True
    normalize: Literal["features", "regions"] = "features"

    def __post_init__(self) -> None:
        _checks.in_range(self, width=(1, 65536), embeddings=(1, 1000))


class Hidden(nn.Module):
    """Apply a linear layer, batch norm over all that is not a feature, and ReLU: ...xI -> ...xO."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(x).flatten(0, -2))).view(*x.shape[:-1], -1)


class SimNet(nn.Module):
    """Score every region of an image for each of its phrases: BxPxR, higher where it fits better.

    Words come as BxPxTxV, zeros from the lengths, BxP, on; regions as BxRxF, their places as BxRx5.
    """

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        hidden, word = 4 * config.width, spec.width("words")
        self.boxes, self.over_regions = config.boxes, config.normalize == "regions"
        self.reader: nn.Module | None = None
        if config.phrase == "attention":
            self.reader = _phrases.SelfAttention(word)
        if config.phrase == "gru":
            self.reader, word = _phrases.GRU(word, config.width), config.width
            self.phrase: nn.Module = nn.Linear(word, hidden)
        else:
            self.phrase = branch(word, hidden, hidden)
        box = spec.width("boxes") if config.boxes else 0
        self.region = branch(spec.width("regions") + box, hidden, hidden)
        self.joint = Hidden(hidden, hidden)
        concepts = (Hidden(hidden, config.width) for _ in range(config.embeddings))
        self.concepts = nn.ModuleList(concepts)
        chooses = config.embeddings > 1
        self.choice = branch(word, hidden, config.embeddings) if chooses else None
        self.score = nn.Linear(config.width, 1)
        _phrases.glorot(self)  # as the authors' library does

    def forward(self, words: Tensor, lengths: Tensor, regions: Tensor, boxes: Tensor) -> Tensor:
        phrases_BPV = self.read(words, lengths)
        if self.boxes:
            regions = torch.cat([regions, boxes.to(regions.dtype)], 2)
        phrases_BPH = _even(self.phrase(phrases_BPV), 2)
        regions_BRH = _even(self.region(regions), 1 if self.over_regions else 2)
        joint_BPRH = self.joint(phrases_BPH[:, :, None] * regions_BRH[:, None])
        if self.choice is None:
            joint_BPRD = self.concepts[0](joint_BPRH)
        else:
            parts_BPK = self.choice(phrases_BPV).softmax(2)
            joint_BPRD = sum(
                concept(joint_BPRH) * part_BP[..., None, None]
                for concept, part_BP in zip(self.concepts, parts_BPK.unbind(2), strict=True)
            )
        return self.score(joint_BPRD).squeeze(3)

    def read(self, words_BPTV: Tensor, lengths_BP: Tensor) -> Tensor:
        """Return one vector a phrase, BxPxV; of a GRU BxPxD."""
        words_WTV, lengths_W = words_BPTV.flatten(0, 1), lengths_BP.flatten()
        if isinstance(self.reader, _phrases.GRU):
            phrases_WV = self.reader.last(words_WTV, lengths_W)
        elif self.reader is not None:
            phrases_WV = self.reader(words_WTV, lengths_W)
        else:
            phrases_WV = F.normalize(_phrases.mean(words_WTV, lengths_W), dim=1)
        return phrases_WV.unflatten(0, lengths_BP.shape)


def branch(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return two linear layers, with batch norm and ReLU between them."""
    return nn.Sequential(Hidden(inputs, hidden), nn.Linear(hidden, outputs))


def _even(x: Tensor, dim: int) -> Tensor:
    """Scale vectors along a dimension to a mean square of 1."""
    return F.normalize(x, dim=dim) * math.sqrt(x.shape[dim])


build = SimNet
