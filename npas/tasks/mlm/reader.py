"""Read a folder of plain text, tokenize it, and cut documents into pieces of a limited length.

In `text/*.txt` (UTF-8) a line is a sentence or a paragraph, and an empty line separates documents.
Files are streamed and tokenized in chunks, so that only the pieces are held in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.tasks.common.tokenization import Tokenizer
from npas.utils.files import listed, reading
from npas.utils.progress import track

LINES = 1024  # tokenized at once


@dataclass(frozen=True)
class Pieces:
    """N pieces of documents, without special tokens, padded with 0 to R tokens.

    A piece of `length_N` tokens has two parts, the first of `first_N` tokens. All are int32.
    """

    ids_NR: Tensor
    first_N: Tensor
    length_N: Tensor

    def __len__(self) -> int:
        return len(self.ids_NR)


def read(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield (document number from 0, line) for the non-empty lines of all files, sorted by name.

    Raises ValueError if there are no files or one is not UTF-8.
    """
    document = 0
    for path in listed(folder, "*.txt"):
        inside = False
        with reading(path, "convert it to UTF-8 text"), path.open(encoding="utf-8") as file:
            # Like str.splitlines, split at form feeds and the like, too.
            for line in chain.from_iterable(map(str.splitlines, file)):
                if text := line.strip():
                    yield document, text
                elif inside:
                    document += 1
                inside = bool(text)
        document += inside


def cut(
    lines: Iterable[tuple[int, str]], tokenizer: Tokenizer, room: int, device: torch.device
) -> Pieces:
    """Cut documents, given as (document number, line), into pieces of at most `room` tokens.

    Pieces end at line ends where possible. A piece's first part ends at the line end nearest to
    its middle, or in the middle if it is a single line. Pieces of a single token are dropped.
    """
    # Arrays grow in place: lists would hold all pieces twice for a time.
    ids, firsts, lengths = array("i"), array("i"), array("i")
    document, piece = -1, list[list[int]]()  # the current document, and the lines of the piece
    entries = iter(track(lines, "tokenizing lines"))
    while some := list(islice(entries, LINES)):
        for (number, _), own in zip(some, tokenizer.encode([t for _, t in some]), strict=True):
            for start in range(0, len(own.ids), room):
                part = own.ids[start : start + room]
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
    """Append a piece to the arrays, unless it has fewer than two tokens."""
    whole = list(chain(*piece))
    if len(whole) > 1:
        ids.extend(whole + [0] * (room - len(whole)))
        ends = accumulate(map(len, piece[:-1]))
        middle = len(whole) // 2
        firsts.append(min(ends, key=lambda end: abs(2 * end - len(whole)), default=middle))
        lengths.append(len(whole))
