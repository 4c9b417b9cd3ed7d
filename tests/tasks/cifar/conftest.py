"""Tiny CIFAR sets on disk."""

import hashlib
import tarfile

import pytest
import torch
from cifar_files import write_cifar

from npas.config import DataConfig
from npas.tasks import cifar


class TinySet:
    """A tiny CIFAR set on disk, packed as an archive beside it as well."""

    def __init__(self, root, classes):
        self.root, self.classes = root, classes
        self.published = write_cifar(root, classes, *((100, 20) if classes == 10 else (200, 200)))
        self.folder = root / self.published.base_folder
        self.packed = root / "packed" / self.published.filename
        self.packed.parent.mkdir()
        with tarfile.open(self.packed, "w:gz") as tar:
            tar.add(self.folder, self.folder.name)
        self.published.url = self.packed.as_uri()
        self.sha256 = hashlib.sha256(self.packed.read_bytes()).hexdigest()

    def task(self, val_fraction=0.1, seed=0, config=None, published=False, **changes):
        """Make the task, with this set as the published one unless `published`."""
        config = config or cifar.Config(classes=self.classes)
        data = {"root": str(self.root), "val_fraction": val_fraction, "download": False}
        data = DataConfig(**data | changes)
        task = cifar.Task(config, data, seed=seed, device=torch.device("cpu"))
        if not published:
            task.published, task.sha256 = self.published, self.sha256
        return task


@pytest.fixture
def ten(tmp_path):
    """CIFAR-10 in a folder of the test's own, to be spoiled at will."""
    return TinySet(tmp_path / "data", 10)


@pytest.fixture(scope="session")
def make_cifar(tmp_path_factory):
    """Return a maker of CIFAR tasks that are ready for use."""
    sets = {n: TinySet(tmp_path_factory.mktemp("cifar") / str(n), n) for n in (10, 100)}

    def make(classes=10, val_fraction=0.1, seed=0, **keys):
        task = sets[classes].task(val_fraction, seed, cifar.Config(classes=classes, **keys))
        task.setup()
        return task

    return make
