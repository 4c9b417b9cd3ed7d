"""Read images from one folder per class or from WebDataset shards, and pack one into the other.

docs/data.md lists the files. A shard has two members per image: `n01440764/n01440764_10026.cls`,
the number of the class, and `.jpg`, the unchanged file. `classes.json` has the class names, and the
numbers of images and shards of each split. `.train.npz`, an index, is written on first use.

The index is built from the tar headers, and again if a shard's size or time has changed; an image
is then a single read at an offset. Names are kept in arrays: a million Python strings would be
copied into every forked worker as their reference counts change.
"""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npas.utils import files

PER_SHARD = 1000  # images; about 110 MB
PACKING = "classes.json"


class Folder:
    """The images of one split, N, with their labels, the indices of sorted folder names."""

    def __init__(self, path: Path, count: int, classes: list[str] | None = None) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        self.path = path
        self.classes = class_folders(path)
        if odd := sorted(set(self.classes) ^ set(classes or self.classes)):
            verb, other = "holds" if odd[0] in self.classes else "lacks", path.parent / "train"
            raise ValueError(f"{path} {verb} the class folder {odd[0]}, unlike {other}")
        if len(self.classes) != count:
            found = len(self.classes)
            raise ValueError(
                f"{path} holds {found:,} class folders, not the {count:,} of task.classes: put all"
                f" classes there, or set task.classes={found}"
            )
        number = {name: i for i, name in enumerate(self.classes)}
        with files.reading(path, "put images there"):  # of every class
            found = make_dataset(str(path), number, IMG_EXTENSIONS)
        start = len(str(path)) + 1
        self.names_N = np.array([os.fsencode(name[start:]) for name, _ in found], dtype=np.bytes_)
        self.labels_N = torch.tensor([label for _, label in found])

    def relative(self, index: int) -> str:
        return os.fsdecode(self.names_N[index].item())

    def name(self, index: int) -> str:
        return str(self.path / self.relative(index))

    def read(self, index: int) -> bytearray:
        with open(os.path.join(self.path, self.relative(index)), "rb") as file:
            return bytearray(file.read())

    def total_bytes(self) -> int:
        """Return the total size of all image files that exist."""
        paths = map(self.name, range(len(self.names_N)))
        return sum(os.path.getsize(path) for path in paths if os.path.exists(path))


def class_folders(path: Path) -> list[str]:
    """List the class folders of a split, sorted; raises ValueError if there are none."""
    found = sorted(own.name for own in path.iterdir() if own.is_dir()) if path.is_dir() else []
    if not found:
        raise ValueError(f"{path} holds no class folders: put each image into its class's folder")
    return found


class Shards:
    """The images of one split, with the interface of `Folder`; raises ValueError if damaged."""

    def __init__(self, folder: Path, split: str, count: int) -> None:
        self.paths = sorted(folder.glob(f"{split}-*.tar"))
        packing = _read_packing(folder)
        self.classes: list[str] = packing.get("classes") or [str(label) for label in range(count)]
        self.names_N, self.index_N4 = _index(folder / f".{split}.npz", self.paths)
        self.labels_N = torch.from_numpy(self.index_N4[:, 3].copy())
        found = {"images": len(self.names_N), "shards": len(self.paths)}
        planned = packing.get(split, found)
        if planned != found or not self.paths:
            raise ValueError(
                f"{folder} holds {found} of {split}, not {planned} as planned: pack it again with"
                " scripts/pack_imagenet.py"
            )
        own = len(self.labels_N.unique())
        if not len(self.classes) == count == own > self.labels_N.max():
            raise ValueError(f"{folder} holds {split} images of {own} classes: set task.classes")

    def name(self, index: int) -> str:
        shard = self.paths[self.index_N4[index, 0]]
        return f"{shard}:{os.fsdecode(self.names_N[index].item())}"

    def read(self, index: int) -> bytearray:
        shard, offset, size = self.index_N4[index, :3].tolist()
        with open(self.paths[shard], "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise OSError("the shard has been truncated")
        return bytearray(data)

    def total_bytes(self) -> int:
        return int(self.index_N4[:, 2].sum())


def _read_packing(folder: Path) -> dict[str, Any]:
    """Read `classes.json`; returns {} if there is none, as in shards that `pack` did not write."""
    path = folder / PACKING
    with files.reading(path, "run scripts/pack_imagenet.py again"):
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _index(kept: Path, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the names, N, and (shard, offset, size, label), Nx4, of all images.

    The index is cached in the file `kept`, if possible, with the shards' sizes and times.
    """
    stats = [path.stat() for path in paths]
    stamps = np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats])
    with contextlib.suppress(Exception), open(kept, "rb") as file:  # it may be damaged
        index = np.load(file)
        if np.array_equal(index["stamps"], stamps):
            return index["names_N"], index["places_N4"]
    found = [(i, *image) for i, path in enumerate(paths) for image in index_shard(path)]
    names_N = np.array([name for _, name, *_ in found], dtype=np.bytes_)
    index_N4 = np.array([(i, *numbers) for i, _, *numbers in found], np.int64).reshape(-1, 4)
    with contextlib.suppress(OSError), files.replacing(kept) as new, open(new, "wb") as file:
        np.savez(file, stamps=stamps, names_N=names_N, places_N4=index_N4)
    return names_N, index_N4


def index_shard(path: Path) -> list[tuple[bytes, int, int, int]]:
    """List name, offset, size and label of a shard's images; raises ValueError if it is damaged."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    images: dict[str, tuple[bytes, int, int]] = {}
    labels: dict[str, int] = {}
    with files.reading(path, "make it again"), tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")  # at the first dot, like WebDataset
            key = f"{folder}/{stem}"
            if f".{ending.lower()}" in IMG_EXTENSIONS:
                images[key] = (os.fsencode(member.name), member.offset_data, member.size)
            elif ending == "cls" and (content := tar.extractfile(member)):
                labels[key] = int(content.read(16))
        if odd := sorted(images.keys() ^ labels.keys()):
            raise ValueError(f"{odd[0]} lacks its image or its label, .cls")
    return [(*found, labels[key]) for key, found in images.items()]


def pack(
    folders: dict[str, Folder], target: Path, per_shard: int = PER_SHARD,
    say: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Pack splits into shards, in the order of their listings; existing shards are kept.

    Shards are written atomically; `say` gets a line each. Raises ValueError if `target` has others.
    """
    target.mkdir(parents=True, exist_ok=True)
    planned: dict[str, Any] = {"classes": next(iter(folders.values())).classes}
    for split, folder in folders.items():
        count = len(folder.labels_N)
        planned[split] = {"images": count, "shards": -(-count // per_shard)}
    earlier = _read_packing(target)
    if any(planned[key] != value for key, value in earlier.items() if key in planned):
        raise ValueError(
            f"{target / PACKING} is of other images, or of shards of another size: pack into"
            " another folder, or delete that one"
        )
    # Written first, so that an interrupted packing is recognized.
    files.write_whole(target / PACKING, json.dumps({**earlier, **planned}, indent=1) + "\n")
    for split, folder in folders.items():
        shards = planned[split]["shards"]
        for number in range(shards):
            path = target / f"{split}-{number:06d}.tar"
            was_there = path.exists()
            if not was_there:
                own = range(number * per_shard, min((number + 1) * per_shard, len(folder.labels_N)))
                _write_shard(folder, own, path)
            say(f"{split} {number + 1:,} of {shards:,} shards{', was there' * was_there}")


def _write_shard(folder: Folder, own: range, path: Path) -> None:
    with files.replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        for index in own:
            label, _, file = folder.relative(index).partition(os.sep)
            stem, _, ending = file.rpartition(".")
            key = f"{label}/{stem.replace('.', '_')}"
            image, number = ending.lower().replace("jpeg", "jpg"), int(folder.labels_N[index])
            pair: dict[str, bytes | bytearray] = {"cls": str(number).encode()}
            pair[image] = folder.read(index)
            for name, data in pair.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
