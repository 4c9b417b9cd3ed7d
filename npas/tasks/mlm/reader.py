"""Read a folder of plain text, and cut its documents into pieces that a network can read.

In `text/*.txt` (UTF-8) a line is a sentence or a paragraph, and an empty line parts two documents.
Files are read as a stream, and so much of them is tokenized at once: what grows with the text is
the pieces alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.tasks.common.tokenization import Tokenizer
from npas.utils.progress import track

CHUNK = 1 << 18  # characters that are tokenized at once, or a line where one is longer


@dataclass(frozen=True)
class Pieces:
    """N pieces of documents, without special tokens, padded with 0 to R tokens.

    A piece is cut in two, its first part `first_N` tokens long and the whole `length_N`.
    """

    ids_NR: Tensor  # int32, as the others
    first_N: Tensor
    length_N: Tensor

    def __len__(self) -> int:
        return len(self.ids_NR)


def read(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, of all files in the order of their names.

    With each comes the number of its document, from 0 on. ValueError if there are no files, or one
    is not UTF-8.
    """
    document = 0
    for path in files(folder):
        inside = False
        try:
            with path.open(encoding="utf-8") as file:
                # Lines part at form feeds and the like, too, as str.splitlines has it.
                for line in chain.from_iterable(map(str.splitlines, file)):
                    if text := line.strip():
                        yield document, text
                    elif inside:
                        document += 1
                    inside = bool(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}): convert it") from error
        document += inside


def files(folder: Path) -> list[Path]:
    """List the files in order. ValueError if there are none."""
    found = sorted(folder.glob("*.txt"))
    if not found:
        raise ValueError(
            f"there is no text in {folder}: put *.txt files there, a sentence a line and an empty"
            " line between documents"
        )
    return found


def cut(
    lines: Iterable[tuple[int, str]], tokenizer: Tokenizer, room: int, device: torch.device
) -> Pieces:
    """Cut documents into pieces of at most `room` tokens, at the ends of lines where they have any.

    Each line comes with the number of its document. Each piece is cut in two at the end of a line,
    the one nearest to its middle, or in its middle if it is of one line. A piece of a single token,
    which has no two parts, is dropped.
    """
    # Arrays that grow in place: there is no time when all pieces are held twice.
    ids, firsts, lengths = array("i"), array("i"), array("i")
    document, piece = -1, list[list[int]]()  # which is under way, line by line
    for number, tokens in _encoded(track(lines, "tokenizing lines"), tokenizer):
        for start in range(0, len(tokens), room):
            part = tokens[start : start + room]
            if piece and (number != document or sum(map(len, piece)) + len(part) > room):
                _add(piece, room, ids, firsts, lengths)
                piece = []
            document = number
            piece.append(part)
    _add(piece, room, ids, firsts, lengths)
    arrays = (np.asarray(ids).reshape(-1, room), np.asarray(firsts), np.asarray(lengths))
    return Pieces(*(torch.from_numpy(array).to(device) for array in arrays))


def _add(
    piece: list[list[int]], room: int, ids: array[int], firsts: array[int], lengths: array[int]
) -> None:
    """Add a piece as a row, unless it has no two parts."""
    whole = list(chain(*piece))
    if len(whole) > 1:
        ids.extend(whole + [0] * (room - len(whole)))
        ends = accumulate(map(len, piece[:-1]))
        middle = len(whole) // 2
        firsts.append(min(ends, key=lambda end: abs(2 * end - len(whole)), default=middle))
        lengths.append(len(whole))


def _encoded(
    lines: Iterable[tuple[int, str]], tokenizer: Tokenizer
) -> Iterator[tuple[int, list[int]]]:
    """Yield the document and the ids of each line, of so many at once as make up `CHUNK`."""
    chunk: list[tuple[int, str]] = []
    size = 0
    for entry in chain(lines, (None,)):
        if entry is not None:
            chunk.append(entry)
            size += len(entry[1])
        if size >= CHUNK or entry is None:
            encoded = tokenizer.encode([line for _, line in chunk])
            for (number, _), line in zip(chunk, encoded, strict=True):
                yield number, line.ids
            chunk, size = [], 0
