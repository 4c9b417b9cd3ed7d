"""Keep the region features of a split in one HDF5 file that no kill can damage.

A dataset an image, named by its id: a row a region, best first, float32. HDF5 itself does not
survive a kill while it writes, so that images go to parts first, each written under another name
and then renamed; the parts are joined in the same way.

Dimensions: R regions, D numbers of each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from npas.tasks.common.files import reason

MADE_BY = "made_by"  # the attribute of a file that says how it was made


class Store:
    """Collects the matrices of images, `per_part` at a time, into the file `target`.

    `settings` says how they were made: ValueError, here and later, for files that were made
    otherwise or are damaged, and where the disk is full. One process at a time.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any], per_part: int) -> None:
        self.target, self.per_part = target, per_part
        self.made_by = json.dumps(dict(settings), sort_keys=True)
        self.folder = target.with_suffix(".parts")
        self.waiting: dict[str, np.ndarray] = {}
        for left in (target.with_name(f"{target.name}.tmp"), *self.folder.glob("*.tmp")):
            left.unlink(missing_ok=True)
        self.in_target = set(self._names(target)) if target.exists() else set()
        self.parts = sorted(self.folder.glob("part-*.h5"))
        self.done = self.in_target | {name for part in self.parts for name in self._names(part)}

    def _names(self, path: Path) -> list[str]:
        """List a file's images. ValueError if it is damaged, or made in another way."""
        try:
            with h5py.File(path, "r") as file:
                names, made_by = list(file), file.attrs.get(MADE_BY)
        except OSError as error:
            raise ValueError(
                f"{path} is damaged ({reason(error)}): remove it, and the same command makes it"
                " again"
            ) from None
        if made_by is None:
            raise ValueError(
                f"{path} was made by another tool, and nothing is added to it: move it away, and"
                " the same command makes one"
            )
        if made_by != self.made_by:
            raise ValueError(
                f"{path} was made otherwise ({made_by}): ask for the same, or remove it"
            )
        return names

    def add(self, name: str, rows_RD: np.ndarray) -> bool:
        """Add an image; return whether a part was written with it."""
        self.waiting[name] = rows_RD
        if len(self.waiting) < self.per_part:
            return False
        self._write_part()
        return True

    def _write_part(self) -> None:
        # Built in memory: a plain write fails in a plain way where the disk is full.
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            file.attrs[MADE_BY] = self.made_by
            for name, rows_RD in self.waiting.items():
                _put(file, name, rows_RD)
        number = int(self.parts[-1].stem.removeprefix("part-")) + 1 if self.parts else 0
        part = self.folder / f"part-{number:06}.h5"
        try:
            self.folder.mkdir(exist_ok=True)
            with _whole(part) as temporary, open(temporary, "wb") as raw:
                raw.write(memory.getbuffer())
                raw.flush()
                os.fsync(raw.fileno())
        except OSError as error:
            raise self._unwritable(part, error) from None
        self.parts.append(part)
        self.done |= set(self.waiting)
        self.waiting = {}

    def finish(self) -> int:
        """Join file and parts into one, if there is anything; return how many images it has."""
        if self.waiting:
            self._write_part()
        if not self.done:
            return 0
        if self.done - self.in_target or not self.target.exists():
            sources = [path for path in (self.target, *self.parts) if path.exists()]
            needed = sum(path.stat().st_size for path in sources)
            free = shutil.disk_usage(self.target.parent).free
            if free < needed:
                raise ValueError(
                    f"{self.target} takes {needed / 1e9:.1f} GB more while parts are joined, and"
                    f" {free / 1e9:.1f} are free: make room, and the same command goes on"
                )
            with _whole(self.target) as temporary:
                self._join(sources, temporary)
            self.in_target = set(self.done)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.parts = []
        return len(self.in_target)

    def _join(self, sources: Sequence[Path], temporary: Path) -> None:
        """Copy all images into one file, compressed as they are."""
        try:
            with h5py.File(temporary, "w") as joined:
                joined.attrs[MADE_BY] = self.made_by
                for path in sources:
                    with h5py.File(path, "r") as source:
                        for name in source:
                            if name not in joined:
                                source.copy(source[name], joined, name)
            with open(temporary, "rb+") as raw:
                os.fsync(raw.fileno())
        except (OSError, RuntimeError) as error:
            raise self._unwritable(self.target, error) from None

    def _unwritable(self, path: Path, error: Exception) -> ValueError:
        return ValueError(
            f"{path} cannot be written ({reason(error)}): fix that, and the same command goes on"
        )


def _put(file: h5py.File, name: str, rows_RD: np.ndarray) -> None:
    """Store a matrix in one piece: it is always read as a whole."""
    file.create_dataset(name, data=rows_RD, chunks=rows_RD.shape, compression="lzf", shuffle=True)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; the file gets its own when that is done, and is removed if not."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
