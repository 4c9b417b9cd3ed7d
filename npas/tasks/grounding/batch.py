"""Build batches of images, each with some of its phrases and its proposed regions.

All images of a batch have the same number of phrases and regions. If an image has fewer, its own
are repeated instead of padded, so that batch norms see real data only. Repetitions are neither
trained on nor counted.

Dimensions: B lots, P phrases each, T words per phrase, V numbers per word, R regions, D features
per region, N phrases of the split.
"""

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
from npas.tasks.grounding.reading import Flat
from npas.tasks.grounding.regions import Regions
from npas.tasks.scenes.regions import places
from npas.utils import rng


class Lot(NamedTuple):
    """An image and the indices of at most P of its phrases."""

    image: int
    phrases: Sequence[int]


@dataclass
class Part:
    """A split: its phrases and word vectors in memory, and its region features on disk."""

    flat: Flat
    regions: Regions
    words: Words
    text_N: Tensor  # int64: index of each phrase's text in `words`
    phrases: int  # P
    most: int  # R

    def __len__(self) -> int:
        return len(self.there)

    @cached_property
    def there(self) -> list[int]:
        """Return the indices of the images that have features; the others are never read."""
        return np.flatnonzero(self.regions.rows_I).tolist()

    @cached_property
    def lots(self) -> list[Lot]:
        size = self.phrases
        return [
            Lot(i, own[start : start + size])
            for i, own in zip(self.there, map(self.flat.of_image, self.there), strict=True)
            for start in range(0, len(own), size)
        ]

    def drawn(self, index: int, key: int) -> Lot:
        """Draw up to P phrases of an image, in random order."""
        own = self.flat.of_image(index)
        order = rng.permutation(key, len(own), torch.device("cpu"))
        return Lot(index, [own[i] for i in order[: self.phrases].tolist()])

    def read(self, lots: Sequence[Lot]) -> Batch:
        """Return inputs and evaluation targets.

        The overlaps of phrases and regions, BxPxR; the numbers of regions without repetitions, B;
        the indices of the phrases, BxP, -1 for a repetition.
        """
        most, rows = self.most, len(lots)
        widths = self.regions.width, 5, 4
        regions_BRD, boxes_BR5, pixels_BR4 = (torch.empty(rows, most, w) for w in widths)
        number_BP = torch.full((rows, self.phrases), -1)
        shown_BP = torch.empty_like(number_BP)
        counts_B = torch.empty(rows, dtype=torch.int64)
        for row, (image, phrases) in enumerate(lots):
            features_RD, boxes_R4 = self.regions.read(image, most)
            counts_B[row] = len(boxes_R4)
            turn_R = np.arange(most) % len(boxes_R4)
            boxes_R4 = boxes_R4[turn_R]
            regions_BRD[row] = torch.from_numpy(features_RD[turn_R])
            size = self.flat.images[image][2:]
            boxes_BR5[row] = torch.from_numpy(places(boxes_R4, *size))
            pixels_BR4[row] = torch.from_numpy(boxes_R4)
            number_BP[row, : len(phrases)] = torch.tensor(phrases)
            shown_BP[row] = number_BP[row, torch.arange(self.phrases) % len(phrases)]
        words_BPTV, lengths_BP = self.words.take(self.text_N[shown_BP])
        inputs = {"words": words_BPTV, "lengths": lengths_BP}
        inputs |= {"regions": regions_BRD, "boxes": boxes_BR5}
        overlap_BPR = overlaps(torch.from_numpy(self.flat.boxes_N4[shown_BP.numpy()]), pixels_BR4)
        targets = {"overlaps": overlap_BPR, "regions": counts_B, "phrases": number_BP}
        return Batch(inputs, targets, rows)

    def training(
        self, lots: Sequence[Lot], keys: Sequence[int], positive: float, negatives: int
    ) -> Batch:
        """Return inputs, and labels of each phrase and region, BxPxR, int8; 0 for repetitions."""
        batch = self.read(lots)
        overlap_BPR, counts_B = batch.targets["overlaps"], batch.targets["regions"]
        labels_BPR = torch.zeros_like(overlap_BPR, dtype=torch.int8)
        for row, (lot, key, count) in enumerate(zip(lots, keys, counts_B.tolist(), strict=True)):
            own = slice(0, len(lot.phrases)), slice(0, count)
            labels_BPR[row][own] = labels(overlap_BPR[row][own], positive, negatives, key)
        return batch._replace(targets={"labels": labels_BPR})
