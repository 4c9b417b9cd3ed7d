"""Keep sets of synthetic scenes on disk: written once, by one process, and whole.

A set lies in a folder under `data.root` whose name ends in a hash of all that decides its bytes, so
that no set is taken for another, and runs that ask for the same one share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from npas.tasks import base
from npas.tasks.common import checksums, files
from npas.tasks.scenes.world import Difficulty
from npas.utils.checks import within

if TYPE_CHECKING:
    from npas.config import DataConfig

WORLD = 1  # which world it is: one more when the same keys come to mean other bytes
MOST = 10_000_000  # images of a split: more is a typing error, and would fill the disk


@dataclass(frozen=True)
class Made:
    """The `task.made.*` keys: how many images each split has, and which. ValueError."""

    train: int = 2000
    val: int = 200
    test: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("train", "val", "test"), (1, MOST))
        within("task.made", self, {**sizes, "seed": (0, math.inf)})


class SceneTask(base.Task):
    """Train on images' regions, which stream from disk: of published files or rendered scenes.

    All sets have a part to choose a checkpoint by.
    """

    has_validation = True
    compared: checksums.Comparison

    def __init__(self, config: Any, data: DataConfig, seed: int, name: str) -> None:
        base.refuse_val_fraction(data, name, "which has a part to choose a checkpoint by")
        self.name = name
        self.config = config
        self.data = data
        self.seed = seed
        self.device = torch.device("cpu")  # whatever trains
        self.source = data.source
        self.is_rendered = config.set == "scenes" or self.source == "synthetic"
        self.compared = checksums.Comparison(data.verify)
        self.parts: dict[str, Any] = {}

    def find(
        self,
        form: str,
        sizes: dict[str, int],
        write: Callable[[Path, dict[str, int], int], Any],
    ) -> Path:
        """Return the folder of the scenes asked for, which `write(folder, counts, seed)` writes.

        Those of a synthetic run are few, and gone when the task is; others lie under `data.root`.
        `form` says in which form, `sizes` what else decides their bytes.
        """
        config, few = self.config, self.data.synthetic
        sizes = {**sizes, "region_width": config.region_width, "word_width": config.word_width}
        if self.source == "synthetic":
            root = temporary(self)
            write(root, {"train": few.train, "val": few.test, "test": few.test}, 0)
            return root
        made = config.made
        counts = {"train": made.train, "val": made.val, "test": made.test}
        decides = form, config.scenes, made, sizes
        return ensure(Path(self.data.root), *decides, lambda new: write(new, counts, made.seed))


def refuse_unread(config: Any, keys: Sequence[str]) -> None:
    """Raise ValueError if one of the keys is set where `task.set=scenes`, which has its own."""
    for key in keys:
        value = getattr(config, key)
        if config.set == "scenes" and value != getattr(type(config), key):
            raise ValueError(
                f"task.{key}={value} is not read where task.set=scenes, which has its own: leave it"
                " out"
            )


def ensure(
    root: Path,
    form: str,
    difficulty: Difficulty,
    made: Made,
    sizes: dict[str, int],
    write: Callable[[Path], Any],
) -> Path:
    """Return the folder of a set, written by `write(folder)` if it is not there yet.

    `form` says in which form, `sizes` what else decides its bytes. Whoever is killed leaves nothing
    that is taken for a set. ValueError, one line, where it cannot be written.
    """
    decides = [WORLD, form, dataclasses.asdict(difficulty), dataclasses.asdict(made), sizes]
    text = json.dumps(decides, sort_keys=True)
    name = f"scenes-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    folder, new = root / name, root / f".{name}.new"
    if folder.is_dir():
        return folder
    try:
        with files.locked(root / f".{name}.lock"):
            if not folder.is_dir():
                shutil.rmtree(new, ignore_errors=True)  # of one that was killed
                try:
                    new.mkdir(parents=True)
                    write(new)
                    os.replace(new, folder)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({files.reason(error)}): set data.root to a folder with"
            " room for synthetic scenes"
        ) from None
    return folder


def temporary(owner: object) -> Path:
    """Return a new folder that is gone when its owner is, or this process."""
    folder = tempfile.mkdtemp(prefix="npas-scenes-")
    weakref.finalize(owner, _remove, folder, os.getpid())
    return Path(folder)


def _remove(folder: str, process: int) -> None:
    """Delete a folder, unless this is a forked copy of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
