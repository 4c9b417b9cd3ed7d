"""Read a folder of plain text, and cut its documents into pieces that a network can read.

In `text/*.txt` (UTF-8) a line is a sentence or a paragraph, and an empty line parts two documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npas.tasks._text import Tokenizer


@dataclass(frozen=True)
class Pieces:
    """Hold N pieces of documents, without special tokens, padded with 0 to R tokens.

    A piece is cut in two, its first part `first_N` tokens long and the whole `length_N`.
    """

    ids_NR: np.ndarray  # int32, as the others
    first_N: np.ndarray
    length_N: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_NR)


def read(folder: Path) -> list[list[str]]:
    """Return the documents of all files, in the order of their names: lines that are not empty.

    ValueError if there are none, or a file is not UTF-8.
    """
    documents: list[list[str]] = []
    for path in files(folder):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}): convert it") from error
        document: list[str] = []
        for line in [*text.splitlines(), ""]:
            if line.strip():
                document.append(line.strip())
            elif document:
                documents.append(document)
                document = []
    if not documents:
        raise ValueError(f"the files in {folder} hold no text")
    return documents


def files(folder: Path) -> list[Path]:
    """List the files in order. ValueError if there are none."""
    found = sorted(folder.glob("*.txt"))
    if not found:
        raise ValueError(
            f"there is no text in {folder}: put *.txt files there, a sentence a line and an empty"
            " line between documents"
        )
    return found


def cut(documents: Sequence[Sequence[str]], tokenizer: Tokenizer, room: int) -> Pieces:
    """Cut documents into pieces of at most `room` tokens, at the ends of lines where they have any.

    Each piece is cut in two at the end of a line, the one nearest to its middle, or in its middle
    if it is of one line. A piece of a single token, which has no two parts, is dropped.
    """
    rows: list[tuple[list[int], int]] = []
    for document in documents:
        lines: list[list[int]] = [
            encoded.ids[start : start + room]
            for encoded in tokenizer.encode(document)
            for start in range(0, len(encoded.ids), room)
        ]
        piece: list[list[int]] = []
        for line in [*lines, None]:
            if piece and (line is None or sum(map(len, piece)) + len(line) > room):
                rows.append(_halve(piece))
                piece = []
            if line is not None:
                piece.append(line)
    rows = [(ids, first) for ids, first in rows if len(ids) > 1]
    ids_NR = np.zeros((len(rows), room), np.int32)
    for n, (ids, _) in enumerate(rows):
        ids_NR[n, : len(ids)] = ids
    first_N = np.array([first for _, first in rows], np.int32)
    return Pieces(ids_NR, first_N, np.array([len(ids) for ids, _ in rows], np.int32))


def _halve(lines: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Return the lines' tokens in a row, and how many of them the first part has."""
    ids = [token for line in lines for token in line]
    ends = np.cumsum([len(line) for line in lines])[:-1]
    if not len(ends):
        return ids, len(ids) // 2
    return ids, int(ends[np.abs(2 * ends - len(ids)).argmin()])
