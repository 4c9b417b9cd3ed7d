"""Store rendered datasets on disk: written once, by one process, atomically.

A dataset is a folder under `data.root` whose name ends in a hash of everything that determines its
content, so that runs with the same settings share it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from npas.tasks import base
from npas.utils import files
from npas.utils.checks import Ranged
from npas.utils.files import temporary

WORLD = 1  # version: increment if the same keys give other content


@dataclass(frozen=True)
class Made(Ranged, section="task.made."):
    """The `task.made.*` keys: the number of images of each split, and their seed."""

    train: Annotated[int, "[1, 10000000]"] = 2000
    val: Annotated[int, "[1, 10000000]"] = 200
    test: Annotated[int, "[1, 10000000]"] = 500
    seed: Annotated[int, "[0, inf)"] = 0


class SceneTask(base.Task):
    """The base of tasks on region features, streamed from published files or rendered scenes."""

    def prepare(self) -> None:
        self.name = self.config.set
        base.refuse_val_fraction(self.data, self.name, "which has a validation split")
        self.computing = self.device
        self.device = torch.device("cpu")  # batches stream from disk
        self.is_rendered = self.config.set == "scenes" or self.source == "synthetic"
        self.has_validation = True

    def find(
        self, form: str, sizes: dict[str, int], write: Callable[[Path, dict[str, int], int], Any]
    ) -> Path:
        """Return the folder of the rendered dataset; `write(folder, counts, seed)` writes it.

        That of a synthetic run is small, and deleted with the task; others are under `data.root`.
        `form` is the file format; it and `sizes` are part of the hash in the folder's name. A
        killed process leaves no incomplete dataset. Raises ValueError if it cannot be written.
        """
        config, few, made = self.config, self.data.synthetic, self.config.made
        if self.source == "synthetic":
            root = temporary(self)
            write(root, {"train": few.train, "val": few.test, "test": few.test}, 0)
            return root
        sizes = {**sizes, "region_width": config.region_width, "word_width": config.word_width}
        settings = [WORLD, form, asdict(config.scenes), asdict(made), sizes]
        text = json.dumps(settings, sort_keys=True)
        name = f"scenes-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        folder, new = self.root / name, self.root / f".{name}.new"
        if folder.is_dir():
            return folder
        try:
            with files.locked(self.root / f".{name}.lock"):
                if not folder.is_dir():
                    shutil.rmtree(new, ignore_errors=True)  # of a killed process
                    new.mkdir(parents=True)
                    counts = {"train": made.train, "val": made.val, "test": made.test}
                    write(new, counts, made.seed)
                    os.replace(new, folder)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise ValueError(
                f"{folder} cannot be written ({files.reason(error)}): set data.root to a folder"
                " with room for rendered scenes"
            ) from None
        return folder


def refuse_unread(config: Any, keys: Sequence[str]) -> None:
    """Raise ValueError if one of the keys is set with `task.set=scenes`, which ignores it."""
    for key in keys:
        value = getattr(config, key)
        if config.set == "scenes" and value != getattr(type(config), key):
            raise ValueError(f"task.{key}={value} is not read with task.set=scenes: leave it out")
