"""Build a two-branch network, which puts sentences and images where they are near if they fit.

Of Wang et al. (TPAMI 2018, arXiv 1704.03470) as Burns et al. (ICCV 2019, arXiv 1908.06327) use it.
A sentence is the mean of its words' vectors, or one weighted by self-attention; an image the mean
of its regions. Each goes through a branch of its own: a linear layer, batch norm, ReLU, dropout, a
second linear layer; vectors of length 1 come out, and the nearer they are the better they fit.

With W = `width`, E = `embedding`, V numbers a word and D numbers a region, there are so many
parameters, of which 2 W of each branch are its batch norm's:

    text (V + 1) W + 2 W + (W + 1) E; image (D + 1) W + 2 W + (W + 1) E; attention 2 V + 1

    W 2048, E 512, V 300, D 2048: 1,669,632 + 5,249,536 = 6,919,168; with attention 6,919,769

The authors' code also trains the words' vectors, held near to where they were; here they are data.
It leaves out stop words; here they are words as all others.

Dimensions: B images, R regions, S = B x P sentences, T words in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _checks, _phrases
from npas.models._match import Matcher, distance

OUTPUTS = ("match",)


@dataclass
class Config:
    """The `model.*` keys of a two-branch network. ValueError for what cannot be built."""

    family: str = "two_branch"
    width: int = 2048
    embedding: int = 512
    sentence: Literal["mean", "attention"] = "mean"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _checks.in_range(self, width=(1, 65536), embedding=(1, 65536))
        _checks.rate(self)


class Branch(nn.Module):
    """Put vectors where they are compared: NxI -> NxE, of length 1."""

    def __init__(self, inputs: int, config: Config) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, config.width)
        self.norm = nn.BatchNorm1d(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.width, config.embedding)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.norm(self.hidden(x))))
        return F.normalize(self.out(hidden).float(), dim=1)


class TwoBranch(Matcher):
    """Match sentences with images, however many: by the distance of what they become, E numbers.

    The numbers of words are not read: a word without a vector is passed over.
    """

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        word, region = spec.width("words"), spec.width("regions")
        attends = config.sentence == "attention"
        self.attention = _phrases.SelfAttention(word) if attends else None
        self.text = Branch(word, config)
        self.image = Branch(region, config)

    def encode_images(self, regions_BRD: Tensor) -> Tensor:
        return self.image(regions_BRD.mean(1))

    def encode_sentences(self, words_STV: Tensor, lengths_S: Tensor, ids_ST: Tensor) -> Tensor:
        if self.attention is not None:  # which passes over zeros itself
            return self.text(self.attention(words_STV, lengths_S))
        known_S = (words_STV != 0).any(2).sum(1).clamp(min=1)
        return self.text(_phrases.mean(words_STV, known_S))

    def match(self, images_BE: Tensor, sentences_SE: Tensor) -> Tensor:
        return -distance(sentences_SE, images_BE)


build = TwoBranch
