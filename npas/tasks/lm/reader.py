"""Read token streams: text, nanoGPT's uint16 files, and Parameter Golf's shards.

A shard (Parameter Golf, openai/parameter-golf) is a header of 256 little-endian int32, of which the
first three are 20240520, 1 and the number of tokens N, followed by N little-endian uint16.
nanoGPT's `train.bin` and `val.bin` are uint16 tokens without a header.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.utils.files import reading

HEADER_BYTES = 256 * 4
MAGIC, VERSION = 20240520, 1
TOKEN = np.dtype("<u2")


class Stream:
    """The N tokens of several arrays, concatenated, and repeated from the start."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, start: int, count: int) -> Tensor:
        """Return `count` tokens from position `start`, int64."""
        taken, position = [], start % len(self)
        while count:
            index = int(np.searchsorted(self.ends, position, side="right"))
            part = self.parts[index]
            first = position - int(self.ends[index]) + len(part)
            piece = part[first : first + count]
            taken.append(piece)
            count -= len(piece)
            position = (position + len(piece)) % len(self)
        return torch.from_numpy(np.concatenate(taken).astype(np.int64))

    def cut(self, at: int) -> tuple[Stream, Stream]:
        before, after = [], []
        for part, end in zip(self.parts, self.ends.tolist(), strict=True):
            kept = min(max(at - (end - len(part)), 0), len(part))
            before.append(part[:kept])
            after.append(part[kept:])
        return Stream(before), Stream(after)


def read_shard(path: Path) -> np.ndarray:
    """Memory-map a shard's tokens, N uint16; raises ValueError if it is damaged."""
    header, size = np.fromfile(path, dtype="<i4", count=256), path.stat().st_size
    if header[:2].tolist() != [MAGIC, VERSION]:
        raise ValueError(f"{path} is not a token shard; without a header set task.dataset=bins")
    if size < HEADER_BYTES + TOKEN.itemsize or size != HEADER_BYTES + TOKEN.itemsize * header[2]:
        raise ValueError(f"{path} is damaged: {size:,} bytes do not fit its {header[2]:,} tokens")
    return np.memmap(path, dtype=TOKEN, mode="r", offset=HEADER_BYTES)


def read_bin(path: Path) -> Stream:
    """Memory-map nanoGPT's tokens without a header; raises ValueError if missing or damaged."""
    if not path.is_file() or not (size := path.stat().st_size) or size % TOKEN.itemsize:
        raise ValueError(f"{path} is missing, or no whole number of uint16: nanoGPT writes it")
    if np.fromfile(path, dtype="<i4", count=1).tolist() == [MAGIC]:
        raise ValueError(f"{path} has a shard's header: set task.dataset=fineweb")
    return Stream([np.memmap(path, dtype=TOKEN, mode="r")])


def read_characters(path: Path) -> tuple[np.ndarray, str]:
    """Return a text as character ids, N uint16, and the sorted characters."""
    text = read_text(path)
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    return np.array([number[character] for character in text], dtype=TOKEN), "".join(characters)


def read_text(path: Path) -> str:
    """Return a file's text; raises ValueError if it is missing or not UTF-8."""
    with reading(path, "put UTF-8 text there"):
        return path.read_bytes().decode()
