"""Generate images and write them in the format of CIFAR.

An image is the mean of its class's coarse pattern and noise, so that there is something to learn.
The output is deterministic.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from npas.tasks.cifar.task import Archive

COARSE = 4  # values of a pattern along each side of an image


def generate_images(
    count: int, classes: int, height: int, width: int, channels: int, stop: int, purpose: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return images, NxHxWxC bytes below `stop`, and their labels, N, in the order 0, 1, ..., 0, 1.

    `purpose` seeds the noise; the patterns are the same for all purposes.
    """
    labels_N = np.arange(count) % classes
    patterns = np.random.default_rng(classes).random((classes, COARSE, COARSE, channels))
    rows, columns = (np.arange(size) * COARSE // size for size in (height, width))
    own = patterns[labels_N][:, rows][:, :, columns]
    noise = np.random.default_rng((classes, purpose)).random(own.shape)
    return ((own + noise) / 2 * stop).astype(np.uint8), labels_N


def write(root: Path, archive: Archive, classes: int, train: int, test: int) -> Archive:
    """Write a synthetic set under `root`; return the archive with the files' md5 checksums.

    `train` and `test` are numbers of images, raised to at least one image per file.
    """
    folder = root / archive.folder
    folder.mkdir()
    sums: list[dict[str, str]] = []
    parts = ((archive.train, train), (archive.test, test))
    for purpose, (names, wanted) in enumerate(parts):
        count = max(wanted, len(names))
        images, labels_N = generate_images(count, classes, 32, 32, 3, 256, purpose)
        rows = images.transpose(0, 3, 1, 2).reshape(count, -1)
        sums.append({})
        for name, own in zip(names, np.array_split(np.arange(count), len(names)), strict=True):
            labels = [int(label) for label in labels_N[own]]
            batch: dict[str, Any] = {
                "batch_label": name,
                "data": rows[own],
                "filenames": [f"{name}_{i}.png" for i in own],
            }
            if classes == 10:
                batch["labels"] = labels
            else:
                batch |= {"fine_labels": labels, "coarse_labels": [n // 5 for n in labels]}
            data = python2_pickle(batch)
            (folder / name).write_bytes(data)
            sums[-1][name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return replace(archive, train=sums[0], test=sums[1])


def python2_pickle(value: Any) -> bytes:
    """Pickle plain data and arrays as Python 2 did for the published set."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_Pickler: Any = pickle._Pickler  # the Python implementation, whose methods can be overridden


class _Python2Pickler(_Pickler):
    """Write protocol 2 with byte strings and numpy's old module name."""

    dispatch = _Pickler.dispatch.copy()

    def save_string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        short = len(data) < 256
        head = b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))
        self.write(head + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is _RECONSTRUCT:
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)
