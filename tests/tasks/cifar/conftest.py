"""Tiny CIFAR sets in the exact format of the published ones."""

import hashlib
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from npas.config import DataConfig
from npas.tasks.cifar import synthetic
from npas.tasks.cifar import task as cifar


def patterned(count, classes, height, width, channels, stop, purpose):
    """Make images whose red tells the row, green the column, and blue the image, all from 1."""
    made = np.empty((count, 32, 32, 3), dtype=np.uint8)
    made[..., 0] = np.arange(1, 33)[:, None]
    made[..., 1] = np.arange(1, 33)
    made[..., 2] = np.arange(1, count + 1)[:, None, None]
    return made, np.arange(count) % classes


@dataclass
class TinySet:
    """A tiny CIFAR set on disk, packed as an archive beside it as well."""

    root: Path
    classes: int
    archive: cifar.Archive

    @property
    def folder(self):
        return self.root / self.archive.folder

    @property
    def packed(self):
        return self.root / "packed" / self.archive.filename

    def rewrite(self, name, data):
        """Replace a file's contents, and take over the new sum as the published one."""
        (self.folder / name).write_bytes(data)
        sums = self.archive.train if name in self.archive.train else self.archive.test
        sums[name] = hashlib.md5(data).hexdigest()

    def task(self, val_fraction=0.1, seed=0, **changes):
        archive = changes.pop("archive", self.archive)
        config = changes.pop("config", cifar.Config(classes=self.classes))
        data = {"root": str(self.root), "val_fraction": val_fraction, "download": False}
        device = torch.device("cpu")
        return cifar.Task(
            config, DataConfig(**data | changes), seed=seed, device=device, archive=archive
        )


def tiny_set(root, classes):
    root.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "generate_images", patterned)
        counts = (100, 20) if classes == 10 else (200, 200)
        archive = synthetic.write(root, cifar.published_archive(classes), classes, *counts)
    made = TinySet(root, classes, archive)
    made.packed.parent.mkdir()
    with tarfile.open(made.packed, "w:gz") as tar:
        tar.add(made.folder, archive.folder)
    sha256 = hashlib.sha256(made.packed.read_bytes()).hexdigest()
    made.archive = replace(archive, url=made.packed.as_uri(), sha256=sha256)
    return made


@pytest.fixture
def ten(tmp_path):
    """CIFAR-10 in a folder of the test's own, to be spoiled at will."""
    return tiny_set(tmp_path / "data", 10)


@pytest.fixture(scope="session")
def make_cifar(tmp_path_factory):
    """Return a maker of CIFAR tasks that are ready for use."""
    sets = {n: tiny_set(tmp_path_factory.mktemp("cifar") / str(n), n) for n in (10, 100)}

    def make(classes=10, val_fraction=0.1, seed=0, **keys):
        config = cifar.Config(classes=classes, **keys)
        task = sets[classes].task(val_fraction, seed, config=config)
        task.setup()
        return task

    return make
