"""The similarity network for phrase grounding, which scores each phrase and region.

Wang et al. (TPAMI 2018, arXiv 1704.03470), in the form of Plummer et al.'s CITE (ECCV 2018) with
one concept layer. Phrase and region each go through a branch of two linear layers; their
elementwise product goes through two more, and a last one gives the score. The weights are

    phrase V x 4D, 4D x 4D; region F x 4D, 4D x 4D; joint 4D x 4D, 4D x D, D x 1:
    4D (V + F) + 3 (4D)^2 + 4D x D + D

    V 300, F 2048, D 256: 5,812,480 weights; 6,656 of batch norms and 2,049 biases: 5,821,185
    V 6000, as the authors' vectors have: 11,649,280 weights; 11,657,985 in all

`boxes` appends the 5 numbers of a region's position to its features: 20 D more weights. Linear
layers before a batch norm have no bias.

`embeddings` = K > 1 has K parallel layers 4D x D, CITE's concepts, mixed with weights from a branch
V x 4D, 4D x K on the phrase: (K - 1) 4D x D + 4D (V + K) more weights. The authors' L1 penalty on
that branch is omitted: softmax follows, and at K = 4 it weighs 5e-5. `phrase` is how words are
pooled: by their mean; by attention, 2 V weights; or as the last state of a GRU of D channels,
3 D (V + D) weights, whose branch is a single layer D x 4D.

The outputs of both branches are normalized to length 1, as the authors do, and multiplied by the
root of their size, because the variance would be too small for the epsilon of the joint layer's
batch norm. `normalize: regions` normalizes each feature over the regions of an image, as their code
does. Their code also normalizes over its phrases; here a phrase's score depends on no other phrase.

Dimensions: B images, P phrases and R regions of each, T words of a phrase, V numbers per word
vector, F features per region, D = `width`, H = 4D hidden channels, K concepts.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _phrases
from npas.utils.checks import Ranged

OUTPUTS = ("regions",)


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a similarity network."""

    family: str = "simnet"
    width: Annotated[int, "[1, 65536]"] = 256  # D; hidden layers are four times as wide
    phrase: Literal["mean", "attention", "gru"] = "mean"
    embeddings: Annotated[int, "[1, 1000]"] = 1  # concept layers, K
    boxes: bool = True
    normalize: Literal["features", "regions"] = "features"


class Hidden(nn.Module):
    """A linear layer, batch norm over all other dimensions, and ReLU: ...xI -> ...xO."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(x).flatten(0, -2))).view(*x.shape[:-1], -1)


class SimNet(nn.Module):
    """Score every region of an image for each of its phrases: BxPxR, higher is better.

    Inputs: words, BxPxTxV, zeros after the lengths, BxP; regions, BxRxF; their positions, BxRx5.
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
        _phrases.glorot(self)  # the default of the authors' library

    def forward(self, words: Tensor, lengths: Tensor, regions: Tensor, boxes: Tensor) -> Tensor:
        phrases_BPV = self.read(words, lengths)
        if self.boxes:
            regions = torch.cat([regions, boxes.to(regions.dtype)], 2)
        phrases_BPH = _unit_variance(self.phrase(phrases_BPV), 2)
        regions_BRH = _unit_variance(self.region(regions), 1 if self.over_regions else 2)
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
        """Return one vector per phrase, BxPxV; with a GRU, BxPxD."""
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


def _unit_variance(x: Tensor, dim: int) -> Tensor:
    """Scale vectors along a dimension to a mean square of 1."""
    return F.normalize(x, dim=dim) * math.sqrt(x.shape[dim])


build = SimNet
