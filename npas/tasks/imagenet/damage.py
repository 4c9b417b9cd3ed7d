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

from npas.tasks.base import greatest_of_ranks
from npas.tasks.imagenet.folder import Images
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

    def found(self, split: str, index: int) -> bool:
        """Return whether the image was found to be damaged."""
        return bool(self.flags[split][index])

    def note(self, split: str, index: int) -> None:
        """Record that an image is damaged."""
        self.flags[split][index] = 1
        self.noted += 1

    def agree(self, world: int) -> None:
        """Exchange between ranks, all together, what each has found, and report it."""
        for flags in self.flags.values():
            greatest_of_ranks(flags, world)
        self._report()

    def count(self) -> int:
        """Count what this rank and its workers have found, and others that have shared theirs."""
        return sum(int(flags.count_nonzero()) for flags in self.flags.values())

    def check(self) -> None:
        """Raise ValueError, naming some of them, if there are too many."""
        if (count := self.count()) > self.most:
            names = [self.images[split].name(i) for split, i in self._all()[:NAMED]]
            more = ", ..." if count > NAMED else ""
            raise ValueError(
                f"{count} images cannot be read, more than task.max_damaged={self.most}:"
                f" {', '.join(names)}{more}; put whole files there, or raise task.max_damaged"
            )

    def report(self) -> None:
        """Warn of those that no warning has named yet, and check the count, if there are new ones.

        Two workers that note at once may seem to be one; `agree` goes through all flags.
        """
        if (noted := int(self.noted)) != self.reported:
            self.reported = noted
            self._report()

    def _report(self) -> None:
        if self.count() > len(self.named):
            for split, index in self._all():
                if (split, index) not in self.named:
                    self.named.add((split, index))
                    why = _why(self.images[split], index)
                    log.warning("%s is left out: %s", self.images[split].name(index), why)
        self.check()

    def _all(self) -> list[tuple[str, int]]:
        return [
            (split, index)
            for split, flags in self.flags.items()
            for index in flags.nonzero().squeeze(1).tolist()
        ]


def _why(images: Images, index: int) -> str:
    """Return why an image cannot be read, by trying once more."""
    try:
        decode(images.read(index))
    except (ValueError, OSError) as error:
        return str(error)
    return "it could not be read a moment ago"
