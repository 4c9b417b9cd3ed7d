"""Keep the region features of a split in one HDF5 file that no kill can damage.

A dataset an image, named by its id: a row a region, best first, float32. HDF5 itself does not
survive a kill while it writes, so that each image goes to a file of its own first, written under
another name and then renamed; these are joined in the same way.

Dimensions: R regions, D numbers of each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from npas.tasks.common.files import reason

MADE_BY = "made_by"  # the attribute of a file that says how it was made


class Store:
    """Collects the matrices of images into the file `target`; `done` are those that it has.

    `settings` says how they were made: ValueError, here and later, for files that were made
    otherwise or are damaged, and where the disk is full. One process at a time.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any]) -> None:
        self.target = target
        self.made_by = json.dumps(dict(settings), sort_keys=True)
        self.folder = target.with_suffix(".parts")
        for left in (target.with_name(f"{target.name}.tmp"), *self.folder.glob("*.tmp")):
            left.unlink(missing_ok=True)
        self.parts = sorted(self.folder.glob("*.h5"))
        paths = [path for path in (target, *self.parts) if path.exists()]
        self.done = {name for path in paths for name in self._names(path)}

    def _names(self, path: Path) -> list[str]:
        """List a file's images. ValueError if it is damaged, or made in another way."""
        try:
            with h5py.File(path, "r") as file:
                names, made_by = list(file), file.attrs.get(MADE_BY, "by another tool")
        except OSError as error:
            raise ValueError(
                f"{path} is damaged ({reason(error)}): remove it, and the same command makes it"
                " again"
            ) from None
        if made_by != self.made_by:
            raise ValueError(
                f"{path} was made otherwise ({made_by}), and nothing is added to it: ask for the"
                " same, or move it away, and the same command makes one"
            )
        return names

    def add(self, name: str, rows_RD: np.ndarray) -> None:
        """Add an image, which no kill loses from then on."""
        # Built in memory: a plain write fails in a plain way where the disk is full.
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            file.attrs[MADE_BY] = self.made_by
            how = {"chunks": rows_RD.shape, "compression": "lzf", "shuffle": True}
            file.create_dataset(name, data=rows_RD, **how)  # always read as a whole
        part = self.folder / f"{name}.h5"
        self.folder.mkdir(exist_ok=True)
        with _whole(part) as temporary:
            temporary.write_bytes(memory.getbuffer())
        self.parts.append(part)
        self.done.add(name)

    def finish(self) -> int:
        """Join all files into one, if there is anything new; return how many images it has."""
        if self.parts:
            sources = [path for path in (self.target, *self.parts) if path.exists()]
            with _whole(self.target) as temporary, h5py.File(temporary, "w") as joined:
                joined.attrs[MADE_BY] = self.made_by
                for path in sources:
                    with h5py.File(path, "r") as source:
                        for name in source:
                            if name not in joined:
                                source.copy(source[name], joined, name)  # compressed as it is
            shutil.rmtree(self.folder, ignore_errors=True)
            self.parts = []
        return len(self.done)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; the file gets its own when that is on disk, or is removed.

    ValueError where it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as raw:
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be written ({reason(error)}): fix that, and the same command goes on"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
