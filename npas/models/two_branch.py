"""A two-branch network, which embeds sentences and images close to each other if they match.

Wang et al. (TPAMI 2018, arXiv 1704.03470) as used by Burns et al. (ICCV 2019, arXiv 1908.06327). A
sentence is the mean of its word vectors, or pooled by self-attention; an image the mean of its
regions. Each goes through its own branch: a linear layer, batch norm, ReLU, dropout, a second
linear layer, normalization to length 1. The similarity is the negative distance.

The numbers of parameters, with W = `width`, E = `embedding`, V numbers per word vector and D
features per region, 2 W of each branch in the batch norm:

    text (V + 1) W + 2 W + (W + 1) E; image (D + 1) W + 2 W + (W + 1) E; attention 2 V + 1

    W 2048, E 512, V 300, D 2048: 1,669,632 + 5,249,536 = 6,919,168; with attention 6,919,769

The authors' code also trains the word vectors, regularized towards their initial values, and
removes stop words; here the vectors are data and stop words are kept.

Dimensions: B images, R regions, S = B x P sentences, T words in each.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _phrases
from npas.models._match import Matcher, distance
from npas.utils.checks import Ranged

OUTPUTS = ("match",)


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a two-branch network."""

    family: str = "two_branch"
    width: Annotated[int, "[1, 65536]"] = 2048
    embedding: Annotated[int, "[1, 65536]"] = 512
    sentence: Literal["mean", "attention"] = "mean"
    dropout: Annotated[float, "[0, 1)"] = 0.5


class Branch(nn.Module):
    """Embed vectors: NxI -> NxE, of length 1."""

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
    """Match sentences, without unknown words, with images by the distance of their embeddings."""

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
        if self.attention is not None:  # which itself skips words without a vector
            return self.text(self.attention(words_STV, lengths_S))
        known_S = (words_STV != 0).any(2).sum(1).clamp(min=1)
        return self.text(_phrases.mean(words_STV, known_S))

    def match(self, images_BE: Tensor, sentences_SE: Tensor) -> Tensor:
        return -distance(sentences_SE, images_BE)


build = TwoBranch
