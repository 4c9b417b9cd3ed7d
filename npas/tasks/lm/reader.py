"""Read token streams (text, nanoGPT's uint16 files, Parameter Golf's shards) and vocabularies.

A shard (Parameter Golf, openai/parameter-golf) is a header of 256 little-endian int32, of which the
first three are 20240520, 1 and the number of tokens N, followed by N little-endian uint16.
nanoGPT's `train.bin` and `val.bin` are uint16 tokens without a header.

Bits per byte compare language models with different tokenizers. The bytes of a token are counted as
in Parameter Golf: a control, unknown or unused piece has 0, a byte piece 1, any other piece the
UTF-8 length of its text without a leading U+2581. That mark is a space and counts 1 more, unless
the previous token is a control, unknown or unused piece.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npas.utils.files import reading

HEADER_BYTES = 256 * 4
MAGIC, VERSION = 20240520, 1
TOKEN = np.dtype("<u2")
SPACE = "\u2581"
BYTES = tuple(bytes([value]) for value in range(256))


class Stream:
    """The N tokens of several arrays, concatenated, and repeated from the start."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def largest(self) -> int:
        """Return the largest token."""
        return max((int(part.max()) for part in self.parts if len(part)), default=0)

    def take(self, start: int, count: int) -> Tensor:
        """Return `count` tokens from position `start`, int64."""
        taken, position = [], start % len(self)
        while count:
            index = int(np.searchsorted(self.ends, position, side="right"))
            taken.append(self.parts[index][position - int(self.ends[index]) :][:count])
            count -= len(taken[-1])
            position = (position + len(taken[-1])) % len(self)
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


def read_text(path: Path) -> str:
    """Return a file's text; raises ValueError if it is missing or not UTF-8."""
    with reading(path, "put UTF-8 text there"):
        return path.read_bytes().decode()


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of V tokens, and how to encode and decode text."""

    bytes_V: Tensor  # int64, without the leading space
    starts_with_space_V: Tensor  # bool
    is_boundary_V: Tensor  # bool: a space after these is not counted
    pieces: tuple[bytes, ...] = ()  # if tokens are characters or bytes
    processor: Any = None  # of SentencePiece

    def __len__(self) -> int:
        return len(self.bytes_V)

    def bytes_of(self, tokens: Tensor, before: Tensor) -> Tensor:
        """Return each token's number of bytes, int64, given the token before it."""
        space = self.starts_with_space_V[tokens] & ~self.is_boundary_V[before]
        return self.bytes_V[tokens] + space

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the tokens' text; invalid UTF-8 becomes U+FFFD."""
        if self.processor is not None:
            return str(self.processor.decode(list(tokens)))
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        if self.processor is not None:
            return list(self.processor.encode(text))
        number = {piece: i for i, piece in enumerate(self.pieces)}
        if self.pieces == BYTES:  # else characters
            return list(text.encode())
        return [number[character.encode()] for character in text]


def of_pieces(pieces: Sequence[bytes]) -> Vocabulary:
    """Return the vocabulary of tokens with these bytes."""
    none_V = torch.zeros(len(pieces), dtype=torch.bool)
    return Vocabulary(torch.tensor([*map(len, pieces)]), none_V, none_V, tuple(pieces))


@functools.cache
def of_sentencepiece(path: Path) -> Vocabulary:
    """Return the vocabulary of a SentencePiece model; raises ValueError if it cannot be read."""
    import sentencepiece

    if not path.is_file():
        raise ValueError(f"{path} is missing: set task.tokenizer to a SentencePiece model, or null")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise ValueError(f"{path} is not a SentencePiece model") from None
    ids = range(processor.vocab_size())
    boundaries = (processor.is_control, processor.is_unknown, processor.is_unused)
    is_boundary_V = torch.tensor([any(check(i) for check in boundaries) for i in ids])
    pieces = [processor.id_to_piece(i) for i in ids]
    is_byte_V = torch.tensor([processor.is_byte(i) for i in ids])
    starts_V = torch.tensor([piece.startswith(SPACE) for piece in pieces])
    lengths_V = torch.tensor([len(piece.removeprefix(SPACE).encode()) for piece in pieces])
    lengths_V = lengths_V.masked_fill(is_byte_V, 1).masked_fill(is_boundary_V, 0)
    return Vocabulary(
        lengths_V, starts_V & ~is_byte_V & ~is_boundary_V, is_boundary_V, (), processor
    )
