"""Read images from WebDataset shards with random access, and pack a folder into such shards.

    imagenet-shards/train-000000.tar     n01440764/n01440764_10026.cls   the class, such as "0"
                                         n01440764/n01440764_10026.jpg   the unchanged image file
    imagenet-shards/classes.json         class names; numbers of images and shards of each split
    imagenet-shards/.train.npz           index of the images, written on first use

The index is built from the tar headers, and again if a shard's size or time has changed. An image
is then a single read at an offset, so an epoch's order is as random as over a folder, and as easy
to resume.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npas.tasks.common import files
from npas.tasks.imagenet.folder import ENDINGS, Folder

PER_SHARD = 1000  # images; about 110 MB
PACKING = "classes.json"


class Shards:
    """The images of one split, with the interface of `Folder`; raises ValueError if damaged."""

    def __init__(self, folder: Path, split: str, count: int) -> None:
        self.paths = _shards_of(folder, split)
        packing = _read_packing(folder)
        self.classes: list[str] = packing.get("classes") or [str(label) for label in range(count)]
        if len(self.classes) != count:
            raise ValueError(
                f"{folder / PACKING} names {len(self.classes):,} classes, not the {count:,} of"
                f" task.classes: set task.classes={len(self.classes)}"
            )
        self.names_N, self.index_N4 = _index(folder / f".{split}.npz", self.paths)
        self.labels_N = torch.from_numpy(self.index_N4[:, 3].copy())
        found = {"images": len(self.names_N), "shards": len(self.paths)}
        if (planned := packing.get(split, found)) != found:
            raise ValueError(
                f"{folder} holds {found['images']:,} {split} images in {found['shards']:,} shards,"
                f" not {planned['images']:,} in {planned['shards']:,} as planned: pack it again"
            )
        if odd := sorted(set(self.labels_N.unique().tolist()) ^ set(range(count))):
            verb = "lacks" if odd[0] < count else "holds"
            raise ValueError(
                f"{folder} {verb} {split} images of class {odd[0]}, and task.classes={count}: set"
                " another, or add the missing shards"
            )

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


Images = Folder | Shards


def _shards_of(folder: Path, split: str) -> list[Path]:
    """List the shards of a split in order; raises ValueError if any is missing."""
    numbered = {}
    for path in folder.glob(f"{split}-*.tar"):
        if matched := re.fullmatch(rf"{split}-(\d+)\.tar", path.name):
            numbered[int(matched[1])] = path
    for number in range(max(len(numbered), 1)):
        if number not in numbered:
            raise ValueError(
                f"{folder} lacks {split}-{number:06d}.tar: add it, or see scripts/pack_imagenet.py"
            )
    return [numbered[number] for number in sorted(numbered)]


def _read_packing(folder: Path) -> dict[str, Any]:
    """Read `classes.json`; returns {} if there is none, as in shards that `pack` did not write."""
    try:
        packing = json.loads((folder / PACKING).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        packing = None
    if not isinstance(packing, dict) or not isinstance(packing.get("classes"), list):
        raise ValueError(f"{folder / PACKING} is damaged: run scripts/pack_imagenet.py again")
    return packing


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
    with contextlib.suppress(OSError):
        temporary = kept.with_name(f"{kept.name}.{os.getpid()}.npz")
        np.savez(temporary, stamps=stamps, names_N=names_N, places_N4=index_N4)
        os.replace(temporary, kept)
    return names_N, index_N4


def index_shard(path: Path) -> list[tuple[bytes, int, int, int]]:
    """List name, offset, size and label of a shard's images; raises ValueError if it is damaged."""
    images: dict[str, tuple[bytes, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")  # at the first dot, like WebDataset
                key = f"{folder}/{stem}"
                if not member.isdir() and (not member.isreg() or member.issparse()):
                    raise ValueError(f"{path} holds {name}, not a regular file: pack it again")
                if f".{ending.lower()}" in ENDINGS:
                    if key in images:
                        raise ValueError(f"{path} holds two images named {key}: rename one")
                    images[key] = (os.fsencode(member.name), member.offset_data, member.size)
                elif ending == "cls":
                    content = tar.extractfile(member)
                    assert content is not None  # None only for members that are not regular files
                    text = content.read(16)
                    if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
                        raise ValueError(f"{path}: {member.name} holds no class number")
                    labels[key] = int(text)
            file.seek(at := tar.offset)
            if file.read(512) != bytes(512):  # tarfile treats an unreadable header as the end
                raise tarfile.ReadError(f"no header and no end mark at byte {at:,}")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): make it again") from None
    if odd := sorted(images.keys() ^ labels.keys()):
        lacks = "label (.cls)" if odd[0] in images else "image (.jpg)"
        raise ValueError(f"{path}: {odd[0]} has no {lacks}; pack it again")
    return [(*found, labels[key]) for key, found in images.items()]


def pack(
    folders: dict[str, Folder],
    target: Path,
    per_shard: int = PER_SHARD,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Pack splits into shards, in the order of their listings; existing shards are kept.

    Each shard is written atomically. `say` is called with a line of progress per shard. Raises
    ValueError if `target` holds other shards.
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
            own = range(number * per_shard, min((number + 1) * per_shard, len(folder.labels_N)))
            was_there = path.exists()
            if not was_there:
                _write_shard(folder, own, path)
            elif [name for name, *_ in index_shard(path)] != [_key(folder, i)[1] for i in own]:
                raise ValueError(f"{path} holds other images: delete it and pack again")
            say(f"{split} {number + 1:,} of {shards:,} shards{', was there' * was_there}")


def _key(folder: Folder, index: int) -> tuple[str, bytes]:
    """Return an image's key in a shard, and its member name."""
    label, _, file = folder.relative(index).partition(os.sep)
    stem, _, ending = file.rpartition(".")
    key = f"{label}/{stem.replace('.', '_')}"
    image = ending.lower().replace("jpeg", "jpg")
    return key, os.fsencode(f"{key}.{image}")


def _write_shard(folder: Folder, own: range, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with tarfile.open(temporary, "w") as tar:
            for index in own:
                key, image = _key(folder, index)
                label = str(int(folder.labels_N[index])).encode()
                for name, data in ((f"{key}.cls", label), (os.fsdecode(image), folder.read(index))):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        index_shard(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
