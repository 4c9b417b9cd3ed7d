"""Read images packed into WebDataset shards, each by itself, and pack a folder into such shards.

    imagenet-shards/train-000000.tar     n01440764/n01440764_10026.cls   the class, as "0"
                                         n01440764/n01440764_10026.jpg   the file as it was
    imagenet-shards/classes.json         names of the classes, how much there must be of each split

A shard's headers are read once; an image is then one read at its place, so that the order of an
epoch is as random as that over a folder, and as easy to take up again.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npas.tasks.common import files
from npas.tasks.imagenet.folder import ENDINGS, Folder
from npas.tasks.imagenet.tar import members

PER_SHARD = 1000  # images: some 110 MB
INDEX = "classes.json"
READERS = 8  # threads that read headers: they mostly wait for the disk


class Shards:
    """Where the images of one split lie. ValueError, one line, if a shard is damaged."""

    def __init__(self, folder: Path, split: str, count: int) -> None:
        self.paths = _shards_of(folder, split)
        index = _read_index(folder)
        classes = index.get("classes") or [str(label) for label in range(count)]
        if len(classes) != count:
            raise ValueError(
                f"{folder / INDEX} names {len(classes):,} classes, not the {count:,} of"
                f" task.classes: set task.classes={len(classes)}"
            )
        self.classes: list[str] = classes
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(index_shard, self.paths))
        self.names_N = np.array([name for shard in found for name, *_ in shard], dtype=np.bytes_)
        places = [(i, *place) for i, shard in enumerate(found) for _, *place in shard]
        self.places_N4 = np.array(places, dtype=np.int64).reshape(-1, 4)  # shard, from, size, label
        self.labels_N = torch.from_numpy(self.places_N4[:, 3].copy())
        self._check(folder, split, index)

    def _check(self, folder: Path, split: str, index: dict[str, Any]) -> None:
        planned = index.get(split)
        there = {"images": len(self.names_N), "shards": len(self.paths)}
        if planned is not None and planned != there:
            raise ValueError(
                f"{folder} holds {there['images']:,} {split} images in {there['shards']:,} shards,"
                f" and {planned['images']:,} in {planned['shards']:,} were to be packed: run"
                " scripts/pack_imagenet.py again"
            )
        labels = self.labels_N.unique()
        if labels[0] < 0 or labels[-1] >= len(self.classes):
            raise ValueError(
                f"{folder} holds labels {labels[0]} to {labels[-1]}, and task.classes="
                f"{len(self.classes)} has 0 to {len(self.classes) - 1}"
            )
        if len(labels) < len(self.classes):
            missing = sorted(set(range(len(self.classes))) - set(labels.tolist()))[0]
            raise ValueError(
                f"{folder} holds no {split} image of class {missing} ({self.classes[missing]}):"
                " add the shards that are missing"
            )

    def name(self, index: int) -> str:
        shard = self.paths[self.places_N4[index, 0]]
        return f"{shard}:{os.fsdecode(self.names_N[index].item())}"

    def read(self, index: int) -> bytearray:
        shard, offset, size = self.places_N4[index, :3].tolist()
        with open(self.paths[shard], "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise OSError("the shard has become shorter")
        return bytearray(data)

    def total_bytes(self) -> int:
        return int(self.places_N4[:, 2].sum())


def _shards_of(folder: Path, split: str) -> list[Path]:
    """List the shards of a split in order. ValueError if one within is missing, or all are."""
    numbered = {}
    for path in folder.glob(f"{split}-*.tar"):
        if matched := re.fullmatch(rf"{split}-(\d+)\.tar", path.name):
            numbered[int(matched[1])] = path
    if not numbered:
        raise ValueError(
            f"{folder} holds no shard {split}-000000.tar: see scripts/pack_imagenet.py"
        )
    for number in range(len(numbered)):
        if number not in numbered:
            raise ValueError(
                f"{folder} lacks {split}-{number:06d}.tar, and has {max(numbered):06d}: add it"
            )
    return [numbered[number] for number in sorted(numbered)]


def _read_index(folder: Path) -> dict[str, Any]:
    """Read what our own packing noted; nothing where shards come from elsewhere."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        index = None
    if not isinstance(index, dict) or not isinstance(index.get("classes"), list):
        raise ValueError(
            f"{folder / INDEX} is damaged: delete it, and run scripts/pack_imagenet.py again"
        )
    return index


def index_shard(path: Path) -> list[tuple[bytes, int, int, int]]:
    """List a shard's images: name, offset, size and label of each. ValueError if it is damaged."""
    images: dict[str, tuple[bytes, int, int]] = {}
    labels: dict[str, int] = {}
    for member in members(path):
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")  # as WebDataset does: from the first point on
        key = f"{folder}/{stem}"
        if f".{ending.lower()}" in ENDINGS:
            if key in images:
                raise ValueError(f"{path} holds two images named {key}: rename one and pack again")
            images[key] = (os.fsencode(member.name), member.offset, member.size)
        elif ending == "cls":
            if not re.fullmatch(rb"\s*\d{1,9}\s*", member.start):
                raise ValueError(f"{path}: {member.name} holds no class number; pack it again")
            labels[key] = int(member.start)
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
    """Pack splits into shards, in the order of their listings; those that are there are kept.

    A shard appears whole or not at all. ValueError if shards of another packing are in the way.
    """
    target.mkdir(parents=True, exist_ok=True)
    first = next(iter(folders.values()))
    planned: dict[str, Any] = {"classes": first.classes}
    for split, folder in folders.items():
        count = len(folder.labels_N)
        planned[split] = {"images": count, "shards": -(-count // per_shard)}
    earlier = _read_index(target)
    if any(planned[key] != value for key, value in earlier.items() if key in planned):
        raise ValueError(
            f"{target / INDEX} is of other images, or of shards of another size: pack into another"
            " folder, or delete that one"
        )
    # Written first: a packing that was broken off is then known as one.
    files.write_whole(target / INDEX, json.dumps({**earlier, **planned}, indent=1) + "\n")
    for split, folder in folders.items():
        shards = planned[split]["shards"]
        for number in range(shards):
            path = target / f"{split}-{number:06d}.tar"
            own = range(number * per_shard, min((number + 1) * per_shard, len(folder.labels_N)))
            was_there = path.exists()
            if not was_there:
                _write_shard(folder, own, path)
            elif [name for name, *_ in index_shard(path)] != [_key(folder, i)[1] for i in own]:
                raise ValueError(f"{path} holds other images: delete it, and it is made again")
            say(f"{split} {number + 1:,} of {shards:,} shards{', was there' * was_there}")


def _key(folder: Folder, index: int) -> tuple[str, bytes]:
    """Return an image's key in a shard, and its file's name there."""
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
                # The label first: a reader of headers then finds it beside the image's.
                for name, data in ((f"{key}.cls", label), (os.fsdecode(image), folder.read(index))):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        index_shard(temporary)
        files.give_usual_mode(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
