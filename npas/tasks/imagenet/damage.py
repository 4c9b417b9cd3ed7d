"""Track images that cannot be read, over worker processes and ranks.

Each split has one flag byte per image in memory shared with the worker processes. The main process
logs each damaged image once, and workers do not retry it; nothing is lost if a worker dies. Ranks
exchange their flags before each epoch and before and after each evaluation: there the limit
applies to the whole run, and all ranks stop together. Between exchanges a rank stops by itself once
its own count exceeds the limit, so that it does not scan a failed disk to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from npas.tasks.base import over_ranks
from npas.tasks.imagenet.shards import Images
from npas.tasks.imagenet.transforms import decode

log = logging.getLogger(__name__)

NAMED = 3  # damaged files listed in an error


class Damage:
    """The damaged images of all splits, of which `most` are tolerated in total."""

    def __init__(self, images: Mapping[str, Images], most: int) -> None:
        self.images = images
        self.most = most
        self.flags = {
            split: torch.zeros(len(own.labels_N), dtype=torch.uint8).share_memory_()
            for split, own in images.items()
        }
        # Counts flags set, so that steps without new damage need not scan the flags.
        self.noted = torch.zeros((), dtype=torch.int64).share_memory_()
        self.reported = 0
        self.named: set[tuple[str, int]] = set()

    def decoded(self, split: str, index: int) -> Tensor | None:
        """Read an image, CxHxW bytes; flag it and return None if it is damaged."""
        if not self.flags[split][index]:
            try:
                return decode(self.images[split].read(index))
            except (ValueError, OSError):
                self.flags[split][index] = 1
                self.noted += 1
        return None

    def found(self) -> list[tuple[str, int]]:
        """List (split, index) of the damaged images found by this rank, its workers, and others."""
        return [
            (split, index)
            for split, flags in self.flags.items()
            for index in flags.nonzero().squeeze(1).tolist()
        ]

    def check(self) -> None:
        """Raise ValueError if there are more than `most`."""
        if len(found := self.found()) > self.most:
            names = [self.images[split].name(i) for split, i in found[:NAMED]]
            more = ", ..." if len(found) > NAMED else ""
            raise ValueError(
                f"{len(found)} images cannot be read, more than task.max_damaged={self.most}:"
                f" {', '.join(names)}{more}; put whole files there, or raise task.max_damaged"
            )

    def report(self) -> None:
        """Log and check new damage found by this rank and its workers.

        Two workers that count at the same time may count as one; `agree` scans all flags.
        """
        if (noted := int(self.noted)) != self.reported:
            self.reported = noted
            self.agree(1)

    def agree(self, world: int) -> None:
        """Exchange flags between ranks (a collective), log new damage and check the count."""
        for flags in self.flags.values():
            over_ranks(flags, world, "MAX")
        for split, index in self.found():
            if (split, index) not in self.named:
                self.named.add((split, index))
                images, why = self.images[split], "it could not be read a moment ago"
                try:  # again, for the reason
                    decode(images.read(index))
                except (ValueError, OSError) as error:
                    why = str(error)
                log.warning("%s is left out: %s", images.name(index), why)
        self.check()
