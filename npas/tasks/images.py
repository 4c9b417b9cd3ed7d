"""Classify your own images: one folder per class, as for `torchvision.datasets.ImageFolder`.

`test` is the test set and `val` selects a checkpoint. If only one of them exists, it is the test
set. All else is as for ImageNet. `task.folder` is the dataset's name in results.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from npas.config import DataConfig
from npas.tasks.imagenet import task as imagenet
from npas.tasks.imagenet.shards import class_folders
from npas.utils.checks import within

SYNTHETIC_CLASSES = 10


@dataclass
class Config(imagenet.Config):
    """The `task.*` keys of own images.

    `classes=0` counts the class folders. A run stores their names as `class_names`: class i of the
    network is the i-th name.
    """

    family: str = "images"
    folder: str = "images"
    classes: Annotated[int, "[0, 1000000]"] = 0
    class_names: list[str] = field(default_factory=list)
    form: Literal["folder"] = "folder"

    def __post_init__(self) -> None:
        if not self.folder.strip() or Path(self.folder).is_absolute() or ".." in self.folder:
            raise ValueError(f"task.folder={self.folder} must name a folder below data.root")
        super().__post_init__()
        if self.classes:
            within("task.classes", self.classes, "[2, inf)")


def settle(config: Config, data: DataConfig) -> Config:
    """Return the config with class names read from the training images' folder, if it exists."""
    train = Path(data.root, config.folder, "train")
    if data.source != "real" or config.class_names or not train.is_dir():
        return config
    names = class_folders(train)
    if len(names) == 1:
        raise ValueError(
            f"{train} has only the class folder {names[0]!r}: a task needs two classes"
        )
    return replace(config, classes=config.classes or len(names), class_names=names)


class Task(imagenet.Task):
    """Classify images that stream from class folders."""

    def prepare(self) -> None:
        config, data, folder = self.config, self.data, self.root / self.config.folder
        if data.val_fraction:
            raise ValueError(
                f"data.val_fraction={data.val_fraction} does not apply to images: put a val/ beside"
                " train/, or set task.held_out to a number of training images"
            )
        self.name, self.published = config.folder, {}
        classes = config.classes or SYNTHETIC_CLASSES
        self.splits = {"train": "train", "test": "test"}
        if data.source == "real":
            if not config.classes and not (folder / "train").is_dir():
                raise self.missing(f"class folders into {folder / 'train'} and {folder / 'test'}")
            classes = config.classes or len(class_folders(folder / "train"))
            has_test, has_val = ((folder / part).is_dir() for part in ("test", "val"))
            if (folder / "train").is_dir() and not (has_test or has_val):
                raise ValueError(
                    f"{folder} has train, but neither test nor val: put class folders into"
                    f" {folder / 'test'}"
                )
            if has_val:
                self.splits |= {"val": "val"} if has_test else {"test": "val"}
            if "val" in self.splits and config.held_out:
                raise ValueError(
                    f"task.held_out: {folder / 'val'} is used for validation; set it to 0"
                )
        self.describe(classes)
        self.has_validation = config.held_out > 0 or "val" in self.splits

    def read(self) -> dict[str, imagenet.Part]:
        parts = super().read()
        names = self.config.class_names
        if self.source == "real" and names and (found := self.images["train"].classes) != names:
            odd = min(set(found) ^ set(names), default="their order")
            raise ValueError(
                f"the class folders of {self.name} are not those that the run was trained with"
                f" ({odd}): put them back, or train again"
            )
        return parts

    def _folder(self, root: Path) -> Path:
        return root / self.name
