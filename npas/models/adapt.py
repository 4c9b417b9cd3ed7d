"""ADAPT-T2I, which matches sentences with images: a sentence adapts the image's regions.

Wehrmann et al. (AAAI 2020, "Adaptive Cross-Modal Embeddings for Image-Text Alignment"). Regions go
through a linear layer and leaky ReLU, and are normalized to length 1. A word's fixed vector and its
learned embedding are concatenated and go through a bidirectional GRU, whose states are normalized
to length 1; a sentence is the mean of its states. The sentence scales and shifts the batch-normed
regions. For each channel, the regions are averaged with weights from a softmax over themselves
("fovea"). The similarity is the cosine of the result and the sentence.

Parameters, with H = `width`, N = `vocab_size`, L = `embedding`, V per word vector, D per region:

    regions D x H + H; words N x L; GRU 2 (3 H (V + L + H) + 6 H); scale and shift 2 (H x H + H)

    H 1024, L 300, V 300, D 2048: 14,187,520 + 300 N
    N = 8,481 words: 16,731,820; N = 11,755 words: 17,714,020

The batch norm has no parameters, and word vectors are data.

Dimensions: B images, R regions, S = B x P sentences, T words in each, s sentences at a time.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _phrases
from npas.models._match import Match, Matcher
from npas.utils.checks import Ranged

OUTPUTS = ("match",)
LEAK = 0.1  # of the leaky ReLU
MOST_NUMBERS = 2**26  # attention weights computed at once: 256 MiB


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of ADAPT-T2I; `embedding=0` uses fixed word vectors only."""

    family: str = "adapt"
    width: Annotated[int, "[1, 65536]"] = 1024
    vocab_size: Annotated[int, "[1, 10000000]"] = 8481  # at least the size of the task's vocabulary
    embedding: Annotated[int, "[0, 65536]"] = 300  # size of learned embeddings
    fovea: Annotated[float, "(0, 10000]"] = 10.0  # inverse temperature of the softmax over regions


class Adapt(Matcher):
    """Match sentences with images, by the cosine of a sentence and the image that it adapts."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        width, learned = config.width, config.embedding
        self.fovea = config.fovea
        self.vocab_size = config.vocab_size if learned else None
        self.image = nn.Linear(spec.width("regions"), width)
        self.embedding = nn.Embedding(config.vocab_size, learned) if learned else None
        self.gru = _phrases.GRU(spec.width("words") + learned, width, both_ways=True)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.scale = nn.Linear(width, width)
        self.shift = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.image.weight)
        nn.init.zeros_(self.image.bias)
        if self.embedding is not None:
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, words: Tensor, lengths: Tensor, regions: Tensor, ids: Tensor) -> Match:
        similarity_SB, sentences_SH = super().forward(words, lengths, regions, ids)
        return Match(similarity_SB, F.normalize(sentences_SH.float(), dim=1))

    def encode_images(self, regions_BRD: Tensor) -> Tensor:
        regions_BRH = F.normalize(F.leaky_relu(self.image(regions_BRD), LEAK), dim=2)
        return self.norm(regions_BRH.flatten(0, 1)).view_as(regions_BRH)

    def encode_sentences(self, words_STV: Tensor, lengths_S: Tensor, ids_ST: Tensor) -> Tensor:
        if self.embedding is not None:
            words_STV = torch.cat([words_STV, self.embedding(ids_ST).to(words_STV.dtype)], 2)
        states_STH = F.normalize(self.gru(words_STV, lengths_S), dim=2)
        return _phrases.mean(states_STH, lengths_S)

    def match(self, images_BRH: Tensor, sentences_SH: Tensor) -> Tensor:
        scale_SH, shift_SH = self.scale(sentences_SH) + 1, self.shift(sentences_SH)
        aims_SH = F.normalize(sentences_SH.float(), dim=1)
        at_once = max(1, MOST_NUMBERS // max(1, images_BRH.numel()))
        parts = (x_SH.float().split(at_once) for x_SH in (scale_SH, shift_SH, aims_SH))
        found = []
        for scale_sH, shift_sH, aims_sH in zip(*parts, strict=True):
            # The shift does not change the weights, whose sum is 1: it can be added to the mean.
            mean_sBH = Fovea.apply(images_BRH.float(), self.fovea * scale_sH)
            adapted_sBH = F.normalize(mean_sBH * scale_sH[:, None] + shift_sH[:, None], dim=2)
            found.append((adapted_sBH * aims_sH[:, None]).sum(2))
        return torch.cat(found)


class Fovea(torch.autograd.Function):
    """Average the regions of images, BxRxH, with weights softmax(sharp x regions) over R: sxBxH.

    `sharp_sH` are factors per channel. To save memory, backward recomputes the weights, sxBxRxH.
    """

    @staticmethod
    def forward(ctx: Any, images_BRH: Tensor, sharp_sH: Tensor) -> Tensor:
        ctx.save_for_backward(images_BRH, sharp_sH)
        return (_weights(images_BRH, sharp_sH) * images_BRH).sum(2)

    @staticmethod
    def backward(ctx: Any, grad_sBH: Tensor) -> tuple[Tensor, Tensor]:
        images_BRH, sharp_sH = ctx.saved_tensors
        weights_sBRH = _weights(images_BRH, sharp_sH)
        mean_sB1H = (weights_sBRH * images_BRH).sum(2, keepdim=True)
        centred_sBRH = images_BRH - mean_sB1H
        grad_sBRH = weights_sBRH * grad_sBH[:, :, None]
        grad_sharp_sH = (grad_sBRH * centred_sBRH * images_BRH).sum((1, 2))
        return (grad_sBRH * (1 + sharp_sH[:, None, None] * centred_sBRH)).sum(0), grad_sharp_sH


def _weights(images_BRH: Tensor, sharp_sH: Tensor) -> Tensor:
    return (sharp_sH[:, None, None] * images_BRH).softmax(2)


build = Adapt
