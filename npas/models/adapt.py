"""Build ADAPT-T2I, which matches sentences with images: the sentence adapts the image's regions.

Of Wehrmann et al. (AAAI 2020, "Adaptive Cross-Modal Embeddings for Image-Text Alignment"). Regions
go through one linear layer, leaky ReLU, and are made of length 1; a word's fixed vector and a
learned one, side by side, through a GRU that reads both ways, and each state is made of length 1.
A sentence is the mean of its states. It scales and shifts what a batch norm made of the regions'
numbers; of each number the regions are averaged, weighted by a softmax over themselves ("fovea");
the cosine of that vector with the sentence's is how well they fit.

With H = `width`, N = `vocab_size`, L = `embedding`, V numbers a word and D numbers a region, there
are so many parameters, the biases of the two linear layers of the scale and the shift among them:

    regions D x H + H; words N x L; the two GRUs 2 (3 H (V + L + H) + 6 H); 2 (H x H + H)

    H 1024, L 300, V 300, D 2048: 14,187,520 + 300 N
    N = 8,481 words: 16,731,820; N = 11,755 words: 17,714,020

The batch norm has no parameters, and the vectors of `words` are data.

Dimensions: B images, R regions, S = B x P sentences, T words in each, s of the sentences at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _checks, _phrases
from npas.models._match import Match, Matcher
from npas.utils.checks import above

OUTPUTS = ("match",)
LEAK = 0.1  # of the leaky ReLU
MOST_NUMBERS = 2**26  # that are weighted at once: 256 MiB


@dataclass
class Config:
    """The `model.*` keys of ADAPT-T2I. ValueError for what cannot be built.

    `embedding=0` leaves learned vectors out: words are then their fixed ones alone.
    """

    family: str = "adapt"
    width: int = 1024
    vocab_size: int = 8481  # learned words, at least as many as the task's vocabulary has
    embedding: int = 300  # numbers of each
    fovea: float = 10.0  # how sharp the softmax over regions is

    def __post_init__(self) -> None:
        _checks.in_range(self, width=(1, 65536), embedding=(0, 65536), vocab_size=(1, 10**7))
        above("model.fovea", self.fovea, 0)
        _checks.in_range(self, fovea=(0, 1e4))


class Adapt(Matcher):
    """Match sentences with images, however many: by the cosine of a sentence and what it adapts."""

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
        """Return the match of all sentences with all images, and the sentences."""
        similarity_SB, sentences_SH = super().forward(words, lengths, regions, ids)
        return Match(similarity_SB, F.normalize(sentences_SH.float(), dim=1))

    def encode_images(self, regions_BRD: Tensor) -> Tensor:
        # Normalized number by number.
        regions_BRH = F.normalize(F.leaky_relu(self.image(regions_BRD), LEAK), dim=2)
        return self.norm(regions_BRH.flatten(0, 1)).view_as(regions_BRH)

    def encode_sentences(self, words_STV: Tensor, lengths_S: Tensor, ids_ST: Tensor) -> Tensor:
        # Each sentence is the mean of its states.
        if self.embedding is not None:
            words_STV = torch.cat([words_STV, self.embedding(ids_ST).to(words_STV.dtype)], 2)
        states_STH = F.normalize(self.gru(words_STV, lengths_S), dim=2)
        return _phrases.mean(states_STH, lengths_S)

    def match(self, images_BRH: Tensor, sentences_SH: Tensor) -> Tensor:
        # Some sentences at a time.
        scale_SH, shift_SH = self.scale(sentences_SH) + 1, self.shift(sentences_SH)
        aims_SH = F.normalize(sentences_SH.float(), dim=1)
        at_once = max(1, MOST_NUMBERS // max(1, images_BRH.numel()))
        parts = (x_SH.float().split(at_once) for x_SH in (scale_SH, shift_SH, aims_SH))
        found = []
        for scale_sH, shift_sH, aims_sH in zip(*parts, strict=True):
            # The weights do not change with the shift, and are 1 in sum: it is added to the mean.
            mean_sBH = Fovea.apply(images_BRH.float(), self.fovea * scale_sH)
            adapted_sBH = F.normalize(mean_sBH * scale_sH[:, None] + shift_sH[:, None], dim=2)
            found.append((adapted_sBH * aims_sH[:, None]).sum(2))
        return torch.cat(found)


class Fovea(torch.autograd.Function):
    """Average the regions of images, BxRxH, weighted by a softmax over themselves: sxBxH.

    Each number by itself, times how sharp each sentence is about it, sxH. The weights, sxBxRxH,
    would fill the memory until the gradient is asked for, and are worked out a second time there.
    """

    @staticmethod
    def forward(ctx: Any, images_BRH: Tensor, sharp_sH: Tensor) -> Tensor:
        ctx.save_for_backward(images_BRH, sharp_sH)
        return (_weights(images_BRH, sharp_sH) * images_BRH).sum(2)

    @staticmethod
    def backward(ctx: Any, slope_sBH: Tensor) -> tuple[Tensor, Tensor]:
        images_BRH, sharp_sH = ctx.saved_tensors
        weights_sBRH = _weights(images_BRH, sharp_sH)
        mean_sB1H = (weights_sBRH * images_BRH).sum(2, keepdim=True)
        off_sBRH = images_BRH - mean_sB1H
        slopes_sBRH = weights_sBRH * slope_sBH[:, :, None]
        sharp_slope_sH = (slopes_sBRH * off_sBRH * images_BRH).sum((1, 2))
        images_slope_BRH = (slopes_sBRH * (1 + sharp_sH[:, None, None] * off_sBRH)).sum(0)
        return images_slope_BRH, sharp_slope_sH


def _weights(images_BRH: Tensor, sharp_sH: Tensor) -> Tensor:
    return (sharp_sH[:, None, None] * images_BRH).softmax(2)


build = Adapt
