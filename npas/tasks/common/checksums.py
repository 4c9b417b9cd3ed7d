"""Compare data with the published dataset, as `data.verify` says.

A task whose dataset has known checksums or counts has a `Comparison`, to which its reader adds each
file or part before using it. The result file records `published` and `found`.
"""

import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Comparison:
    """The checksum or count of each file or part that was read.

    `published` is True if all published checksums match, False if anything differs, and None if
    nothing with a published checksum was read. `difference` describes the first difference. With
    `collects`, differences raise no error and log no warning.
    """

    def __init__(self, verify: str) -> None:
        self.verify, self.collects = verify, False
        self.found: dict[str, str] = {}
        self.expected: dict[str, str | None] = {}
        self.published: bool | None = None
        self.difference: str | None = None

    def note(self, name: str) -> str:
        """Return how `name` compares with the published one, as the end of a line."""
        expected = self.expected.get(name)
        same = expected == self.found.get(name)
        return "" if expected is None else ", as published" if same else f"; published: {expected}"

    def lines(self) -> dict[str, str]:
        """Return what was found, and how it compares."""
        return {name: f"{found}{self.note(name)}" for name, found in self.found.items()}

    def add(
        self, name: str, found: str, expected: str | None, *, path: Path, remedy: str,
        proves: bool = True,
    ) -> None:  # fmt: skip
        """Record the checksum or count `found` for `name`; compare it with `expected`, if known.

        `proves=False` is for counts. A difference raises ValueError, or is logged once (`warn`).
        """
        self.found[name], self.expected[name] = found, expected
        if expected is None or found == expected:
            if expected is not None and proves and self.published is None:
                self.published = True
            return
        problem = f"{path} is not as published ({found}, not {expected})"
        message = f"{problem}: {remedy}, or set data.verify=warn to use it as it is"
        is_first, self.published = self.difference is None, False
        self.difference = self.difference or message
        if self.verify == "refuse" and not self.collects:
            raise ValueError(message)
        if is_first and not self.collects:
            log.warning("%s: results are not compared with published figures", problem)

    def add_images(self, name: str, count: int, published: int | None, path: Path) -> None:
        """Record the number of images of a part whose checksums are not known."""
        expected = None if published is None else f"{published:,} images"
        self.add(name, f"{count:,} images", expected, path=path, remedy="get all", proves=False)


def md5(data: bytes) -> str:
    """Return the md5 checksum of bytes as "md5 HEX"."""
    return f"md5 {hashlib.md5(data, usedforsecurity=False).hexdigest()}"


def sha256(*paths: Path) -> str:
    """Return the sha256 checksum of files, one after the other, as "sha256 HEX"."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return f"sha256 {digest.hexdigest()}"


def bytes_of(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
