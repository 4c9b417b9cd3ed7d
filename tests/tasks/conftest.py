"""Tiny CIFAR sets in the exact format of the published ones, and processes of a test's own."""

import hashlib
import multiprocessing
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from npas.config import DataConfig
from npas.tasks.cifar import synthetic
from npas.tasks.cifar import task as cifar


def python2_pickle(path: Path, value: Any) -> None:
    path.write_bytes(synthetic.python2_pickle(value))


def images(count: int, start: int) -> np.ndarray:
    """Rows of pixels, channel by channel: red tells the row, green the column, blue the image."""
    made = np.empty((count, 3, 32, 32), dtype=np.uint8)
    made[:, 0] = np.arange(1, 33)[:, None]
    made[:, 1] = np.arange(1, 33)[None, :]
    made[:, 2] = np.arange(start + 1, start + count + 1).reshape(-1, 1, 1)
    return made.reshape(count, -1)


def write_cifar10(root: Path, per_file: int = 20) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {
            "batch_label": f"{name} of 5",
            "labels": [n % 10 for n in range(per_file)],
            "data": images(per_file, i * per_file),
            "filenames": [f"{n}.png" for n in range(per_file)],
        }
        python2_pickle(folder / name, batch)
    names = {"num_cases_per_batch": per_file, "label_names": list("abcdefghij"), "num_vis": 3072}
    python2_pickle(folder / "batches.meta", names)


def write_cifar100(root: Path, count: int = 200) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        batch = {
            "filenames": [f"{n}.png" for n in range(count)],
            "batch_label": f"{name} batch 1 of 1",
            "fine_labels": [n % 100 for n in range(count)],
            "coarse_labels": [n % 20 for n in range(count)],
            "data": images(count, 0),
        }
        python2_pickle(folder / name, batch)
    names = {"fine_label_names": ["f"] * 100, "coarse_label_names": ["c"] * 20}
    python2_pickle(folder / "meta", names)


def archive_of(root: Path, classes: int) -> cifar.Archive:
    """Describe the tiny set that lies under `root`, with its true sums, and pack it beside."""
    published = cifar.published_archive(classes)
    folder = root / published.folder
    packed = root / "packed" / published.filename
    packed.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, published.folder)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    return cifar.Archive(
        url=packed.as_uri(),
        filename=published.filename,
        sha256=hashlib.sha256(packed.read_bytes()).hexdigest(),
        folder=published.folder,
        train={name: md5(folder / name) for name in published.train},
        test={name: md5(folder / name) for name in published.test},
    )


@dataclass
class TinySet:
    """A tiny CIFAR set on disk, packed as an archive beside it as well."""

    root: Path
    classes: int
    archive: cifar.Archive

    @property
    def folder(self) -> Path:
        return self.root / self.archive.folder

    def rewrite(self, name: str, batch: Any) -> None:
        """Replace a file's contents, and take over the new sum as the published one."""
        python2_pickle(self.folder / name, batch)
        self.take_over_sums()

    def take_over_sums(self) -> None:
        self.archive = archive_of(self.root, self.classes)

    def task(self, val_fraction: float | None = 0.1, seed: int = 0, **changes: Any) -> cifar.Task:
        data = {"root": str(self.root), "val_fraction": val_fraction, "download": False}
        archive = changes.pop("archive", self.archive)
        config = changes.pop("config", cifar.Config(classes=self.classes))
        return cifar.Task(
            config,
            DataConfig(**data | changes),
            seed=seed,
            device=torch.device("cpu"),
            archive=archive,
        )


def tiny_set(root: Path, classes: int) -> TinySet:
    (write_cifar10 if classes == 10 else write_cifar100)(root)
    return TinySet(root, classes, archive_of(root, classes))


@pytest.fixture
def ten(tmp_path: Path) -> TinySet:
    """CIFAR-10 in a folder of the test's own, to be spoiled at will."""
    return tiny_set(tmp_path / "data", 10)


@pytest.fixture(scope="session")
def make_cifar(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., cifar.Task]:
    """Return a maker of CIFAR tasks that are ready for use."""
    sets = {n: tiny_set(tmp_path_factory.mktemp("cifar") / str(n), n) for n in (10, 100)}

    def make(
        classes: int = 10, val_fraction: float = 0.1, seed: int = 0, image_size: int = 32
    ) -> cifar.Task:
        config = cifar.Config(classes=classes, image_size=image_size)
        task = sets[classes].task(val_fraction, seed, config=config)
        task.setup()
        return task

    return make


@pytest.fixture
def fork() -> Iterator[Callable[..., BaseProcess]]:
    """Return a starter of processes, which have imported all already; the test's end ends them."""
    started: list[BaseProcess] = []

    def start(target: Callable[..., None], *args: Any) -> BaseProcess:
        process = multiprocessing.get_context("fork").Process(target=target, args=args)
        started.append(process)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            process.start()
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
