"""Put together what a network reads of an image: some of its phrases, and the regions proposed.

Every image of a batch has as many phrases and regions as the others. One that has fewer shows its
own again, in turn: so a network's norms see real things only. What is repeated is trained on and
counted once.

Dimensions: B images (or lots of an image's phrases), P phrases of each, T words, V numbers a word,
R regions, D features of a region, N phrases of the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from npas.tasks.base import Batch
from npas.tasks.common.word_vectors import Words
from npas.tasks.grounding.metrics import labels, overlaps
from npas.tasks.grounding.phrases import Flat
from npas.tasks.grounding.regions import Regions, places
from npas.utils import rng


class Sizes(NamedTuple):
    """What all samples have in common."""

    phrases: int  # P
    regions: int  # R


class Lot(NamedTuple):
    """Phrases of one image, by their numbers in the part: P of them at most."""

    image: int
    phrases: Sequence[int]


@dataclass
class Part:
    """A split: its phrases and their words, in memory, and its regions, on disk.

    An image without features is never read: not to be trained on, and its phrases are not measured.
    """

    flat: Flat
    regions: Regions
    words: Words
    text_N: Tensor  # int64: which of the texts that `words` has
    sizes: Sizes

    @cached_property
    def there(self) -> list[int]:
        """Return the numbers of the images that have features."""
        return np.flatnonzero(self.regions.rows_I).tolist()

    @cached_property
    def lots(self) -> list[Lot]:
        """Return all phrases, each once: of each image as many at a time as a sample has."""
        size = self.sizes.phrases
        return [
            Lot(i, own[start : start + size])
            for i, own in zip(self.there, map(self.flat.of_image, self.there), strict=True)
            for start in range(0, len(own), size)
        ]

    def drawn(self, index: int, key: int) -> Lot:
        """Draw phrases of an image, as many as a sample has or as there are, in any order."""
        own = self.flat.of_image(index)
        order = rng.permutation(key, len(own), torch.device("cpu"))
        return Lot(index, [own[i] for i in order[: self.sizes.phrases].tolist()])

    def read(self, lots: Sequence[Lot]) -> Batch:
        """Return inputs, and what answers are compared with.

        Overlaps of each phrase and region, BxPxR, how many regions are no repetition, B, and which
        phrases these are, BxP, -1 for a repetition.
        """
        size, rows = self.sizes, len(lots)
        regions_BRD = torch.empty(rows, size.regions, self.regions.width)
        boxes_BR5 = torch.empty(rows, size.regions, 5)
        pixels_BR4 = torch.empty(rows, size.regions, 4)
        number_BP = torch.full((rows, size.phrases), -1)
        shown_BP = torch.empty_like(number_BP)
        counts_B = torch.empty(rows, dtype=torch.int64)
        for row, (image, phrases) in enumerate(lots):
            features_RD, boxes_R4 = self.regions.read(image, size.regions)
            counts_B[row] = len(boxes_R4)
            turn_R = np.arange(size.regions) % len(boxes_R4)
            boxes_R4 = boxes_R4[turn_R]
            regions_BRD[row] = torch.from_numpy(features_RD[turn_R])
            boxes_BR5[row] = torch.from_numpy(places(boxes_R4, self.flat.images[image]))
            pixels_BR4[row] = torch.from_numpy(boxes_R4)
            number_BP[row, : len(phrases)] = torch.tensor(phrases)
            shown_BP[row] = number_BP[row, torch.arange(size.phrases) % len(phrases)]
        words_BPTV, lengths_BP = self.words.take(self.text_N[shown_BP])
        inputs = {
            "words": words_BPTV,
            "lengths": lengths_BP,
            "regions": regions_BRD,
            "boxes": boxes_BR5,
        }
        overlap_BPR = overlaps(torch.from_numpy(self.flat.boxes_N4[shown_BP.numpy()]), pixels_BR4)
        targets = {"overlaps": overlap_BPR, "regions": counts_B, "phrases": number_BP}
        return Batch(inputs, targets, rows)

    def training(
        self, lots: Sequence[Lot], keys: Sequence[int], positive: float, negatives: int
    ) -> Batch:
        """Return inputs, and labels of each phrase and region, BxPxR, int8.

        By `keys` the negatives are drawn, one key a lot. What is repeated has label 0.
        """
        batch = self.read(lots)
        overlap_BPR, counts_B = batch.targets["overlaps"], batch.targets["regions"]
        labels_BPR = torch.zeros_like(overlap_BPR, dtype=torch.int8)
        for row, (lot, key, count) in enumerate(zip(lots, keys, counts_B.tolist(), strict=True)):
            own = slice(0, len(lot.phrases)), slice(0, count)
            labels_BPR[row][own] = labels(overlap_BPR[row][own], positive, negatives, key)
        return batch._replace(targets={"labels": labels_BPR})
