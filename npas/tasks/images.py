"""Classify your own images: one folder per class, as for `torchvision.datasets.ImageFolder`.

    data.root/FOLDER/train/<class>/*.jpg    also .png, .webp, ...: any sizes, any number of classes
    data.root/FOLDER/val/<class>/*.jpg
    data.root/FOLDER/test/<class>/*.jpg

`test` is the test set and `val` selects a checkpoint. If only one of them exists, it is the test
set, and `task.held_out` can hold out training images for validation. Crops, batches and the
handling of damaged images are as for ImageNet. `task.folder` is the dataset's name in results.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from npas.tasks.imagenet import task as imagenet
from npas.tasks.imagenet.folder import class_folders

if TYPE_CHECKING:
    from npas.config import DataConfig

SYNTHETIC_CLASSES = 10


@dataclass
class Config(imagenet.Config):
    """The `task.*` keys of own images.

    `classes=0` counts the class folders. A run stores their names as `class_names`: class i of the
    network is the i-th name.
    """

    family: str = "images"
    folder: str = "images"
    classes: int = 0
    class_names: list[str] = field(default_factory=list)
    form: Literal["folder"] = "folder"

    def __post_init__(self) -> None:
        if not self.folder.strip() or Path(self.folder).is_absolute() or ".." in self.folder:
            raise ValueError(f"task.folder={self.folder} must name a folder below data.root")
        classes, self.classes = self.classes, self.classes or 2
        super().__post_init__()
        self.classes = classes


def settle(config: Config, data: DataConfig) -> Config:
    """Return the config with class names read from the training images' folder, if it exists."""
    train = Path(data.root, config.folder, "train")
    if data.source != "real" or config.class_names or not train.is_dir():
        return config
    names = class_folders(train)
    return replace(config, classes=config.classes or len(names), class_names=names)


class Task(imagenet.Task):
    """Classify images that stream from class folders."""

    def __init__(
        self, config: Config, data: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        if data.val_fraction:
            raise ValueError(
                f"data.val_fraction={data.val_fraction} does not apply to images: put a val/ beside"
                " train/, or set task.held_out to a number of training images"
            )
        root, classes = Path(data.root, config.folder), config.classes
        if data.source == "real" and not classes:
            if not (root / "train").is_dir():
                raise ValueError(
                    f"{config.folder} is not under data.root={data.root}: put its class folders"
                    f" into {root / 'train'} and {root / 'test'}, or set data.source=synthetic"
                )
            classes = len(class_folders(root / "train"))
        has_test, has_val = ((root / part).is_dir() for part in ("test", "val"))
        self.splits = {"train": "train", "test": "val" if has_val and not has_test else "test"}
        if data.source == "real" and has_test and has_val:
            self.splits |= {"val": "val"}
            if config.held_out:
                raise ValueError(
                    f"task.held_out={config.held_out} is not needed: {root / 'val'} is used for"
                    " validation; set task.held_out=0"
                )
        self.config: Config
        super().__init__(
            replace(config, classes=classes or SYNTHETIC_CLASSES),
            replace(data, val_fraction=None),
            seed=seed,
            device=device,
        )
        self.name, self.published = config.folder, {}
        self.has_validation = config.held_out > 0 or "val" in self.splits

    def setup(self) -> None:
        """List the images, once; raises ValueError if the classes are not those of the run."""
        super().setup()
        names = self.config.class_names
        if self.source == "real" and names and (found := self.images["train"].classes) != names:
            odd = min(set(found) ^ set(names), default="their order")
            raise ValueError(
                f"the class folders of {self.name} are not those that the run was trained with"
                f" ({odd}): put them back, or train again"
            )

    def _folder(self, root: Path) -> Path:
        return root / self.name
