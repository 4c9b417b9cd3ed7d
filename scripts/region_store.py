"""Write the region features of a split to one HDF5 file, safely if the process is killed.

The file has one dataset per image, named by its id: a row per region, best first, float32. HDF5
files are damaged if a process is killed while writing. So each image is first written atomically
to its own file, and these are finally merged into one, also atomically.

Dimensions: R regions, D numbers of each.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from npas.utils.files import reading, reason, replacing

MADE_BY = "made_by"  # the file attribute with the settings


class Store:
    """Collects the matrices of images in the file `target`; `done` are the images it has.

    `settings` are recorded in the files: constructor and methods raise ValueError for files with
    other settings or damage, and if the disk is full. For one process at a time.
    """

    def __init__(self, target: Path, settings: Mapping[str, Any]) -> None:
        self.target, self.folder = target, target.with_suffix(".parts")
        self.made_by = json.dumps(dict(settings), sort_keys=True)
        for left in (*target.parent.glob(f"{target.name}*.tmp"), *self.folder.glob("*.tmp")):
            left.unlink()
        self.parts = sorted(self.folder.glob("*.h5"))
        paths = [path for path in (target, *self.parts) if path.exists()]
        self.done = {name for path in paths for name in self._names(path)}

    def _names(self, path: Path) -> list[str]:
        remedy = "remove it, and the same command makes it again"
        with reading(path, remedy), h5py.File(path, "r") as file:
            names, made_by = list(file), file.attrs.get(MADE_BY, "by another tool")
        if made_by != self.made_by:
            raise ValueError(
                f"{path} was made with other settings ({made_by}): use the same, or move it away,"
                " and the same command makes a new one"
            )
        return names

    def add(self, name: str, rows_RD: np.ndarray) -> None:
        """Add an image, durably."""
        # Built in memory, since a full disk is easier to handle in a plain write.
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            file.attrs[MADE_BY] = self.made_by
            how = {"chunks": rows_RD.shape, "compression": "lzf", "shuffle": True}
            file.create_dataset(name, data=rows_RD, **how)  # always read as a whole
        self.folder.mkdir(exist_ok=True)
        part = self.folder / f"{name}.h5"
        with _writing(part) as temporary:
            temporary.write_bytes(memory.getbuffer())
        self.parts.append(part)
        self.done.add(name)

    def finish(self) -> int:
        """Merge all files into one, if there is anything new; return its number of images."""
        if self.parts:
            sources = [path for path in (self.target, *self.parts) if path.exists()]
            with _writing(self.target) as temporary, h5py.File(temporary, "w") as joined:
                joined.attrs[MADE_BY] = self.made_by
                for path in sources:
                    with h5py.File(path, "r") as source:
                        for name in source.keys() - joined.keys():
                            source.copy(source[name], joined, name)  # stays compressed
            shutil.rmtree(self.folder, ignore_errors=True)
            self.parts = []
        return len(self.done)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be written ({reason(error)}): fix that, and the same command resumes"
        ) from None
