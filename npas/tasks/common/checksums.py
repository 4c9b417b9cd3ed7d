"""Compare data with what was published, as `data.verify` asks, and record what was found.

A set whose checksums or counts are known has a `Comparison`, to which its reader adds each file or
part before it uses it. The result file records `published` and `found`.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

log = logging.getLogger(__name__)


class Comparison:
    """For each file or part that was read, its checksum or count.

    `published` is True if all that was compared has the published checksum, False if anything
    differs, and None if nothing with a published checksum was read. `difference` describes the
    first thing that differs. With `collects` nothing is refused or warned of here.
    """

    def __init__(self, verify: str) -> None:
        self.verify = verify
        self.collects = False
        self.found: dict[str, str] = {}
        self.published: bool | None = None
        self.difference: str | None = None

    def add(
        self,
        name: str,
        found: str,
        expected: str | None,
        *,
        path: Path,
        remedy: str,
        proves: bool = True,
    ) -> None:
        """Record what `name` is, and compare it with the published; None: nothing is known of it.

        An equal count, other than an equal checksum, does not prove the data to be the published
        ones: give `proves=False`. If it differs, ValueError, which tells the remedy, or with
        `data.verify=warn` a warning, once.
        """
        self.found[name] = found
        if expected is None or found == expected:
            if expected is not None and proves and self.published is None:
                self.published = True
            return
        said = f"{path} is not as published ({found}, not {expected})"
        first, self.published = self.difference is None, False
        if first:
            self.difference = f"{said}: {remedy}, or set data.verify=warn to use it as it is"
        if self.collects:
            return
        if self.verify == "refuse":
            raise ValueError(self.difference)
        if first:
            log.warning("%s: results on these data are not compared with published figures", said)

    def add_images(self, name: str, count: int, published: int | None, path: Path) -> None:
        """Record how many images a part has, and compare where checksums are not known."""
        expected = None if published is None else f"{published:,} images"
        self.add(name, f"{count:,} images", expected, path=path, remedy="get all", proves=False)


def md5(data: bytes) -> str:
    """Return the md5 checksum of bytes, with the algorithm's name."""
    return f"md5 {hashlib.md5(data, usedforsecurity=False).hexdigest()}"


def sha256(path: Path) -> str:
    """Return the sha256 checksum of a file, with the algorithm's name."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"sha256 {digest.hexdigest()}"
