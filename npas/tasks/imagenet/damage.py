"""Keep count of images that cannot be read, in a process and in the workers that it forks.

Each split has a byte an image in memory that these processes share. What a worker finds is there
for the main process to name, once, and for other workers not to try again; no message has to come
with a batch, and none can be lost with a worker. Ranks have such bytes each, and share them where
all of them come by: before an epoch, and before and after a measurement. There the limit is the
run's, and all end together; between, a rank that has met too many by itself ends without waiting,
so that a disk that is gone is not searched to its end.
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

NAMED = 3  # of the damaged files, in an error


class Damage:
    """Count the damaged images of some splits, of which `most` are let pass, of all together."""

    def __init__(self, images: Mapping[str, Images], most: int) -> None:
        self.images = images
        self.most = most
        self.flags = {
            split: torch.zeros(len(own.labels_N), dtype=torch.uint8).share_memory_()
            for split, own in images.items()
        }
        # Moves when a flag is set, so that a step that met no damage need not go through them.
        self.noted = torch.zeros((), dtype=torch.int64).share_memory_()
        self.reported = 0
        self.named: set[tuple[str, int]] = set()

    def decoded(self, split: str, index: int) -> Tensor | None:
        """Read an image, CxHxW bytes; None, and a note of it, if it is damaged."""
        if not self.flags[split][index]:
            try:
                return decode(self.images[split].read(index))
            except (ValueError, OSError):
                self.flags[split][index] = 1
                self.noted += 1
        return None

    def found(self) -> list[tuple[str, int]]:
        """List what this rank and its workers have found, and others that have shared theirs."""
        return [
            (split, index)
            for split, flags in self.flags.items()
            for index in flags.nonzero().squeeze(1).tolist()
        ]

    def check(self) -> None:
        """Raise ValueError, naming some of them, if there are too many."""
        if len(found := self.found()) > self.most:
            names = [self.images[split].name(i) for split, i in found[:NAMED]]
            more = ", ..." if len(found) > NAMED else ""
            raise ValueError(
                f"{len(found)} images cannot be read, more than task.max_damaged={self.most}:"
                f" {', '.join(names)}{more}; put whole files there, or raise task.max_damaged"
            )

    def report(self) -> None:
        """Warn of those that no warning has named yet, and check the count, if there are new ones.

        Two workers that note at once may seem to be one; `agree` goes through all flags.
        """
        if (noted := int(self.noted)) != self.reported:
            self.reported = noted
            self.agree(1)

    def agree(self, world: int) -> None:
        """Exchange between ranks, all together, what each has found, warn of it and check it."""
        for flags in self.flags.values():
            over_ranks(flags, world, "MAX")
        for split, index in self.found():
            if (split, index) not in self.named:
                self.named.add((split, index))
                images, why = self.images[split], "it could not be read a moment ago"
                try:  # once more, to know why
                    decode(images.read(index))
                except (ValueError, OSError) as error:
                    why = str(error)
                log.warning("%s is left out: %s", images.name(index), why)
        self.check()
