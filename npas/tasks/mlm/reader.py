"""Read a folder of plain text, and cut its documents into pieces that a network can read.

In `text/*.txt` (UTF-8) a line is a sentence or a paragraph, and an empty line parts two documents.
Files are read as a stream, and so much of them is tokenized at once: what grows with the text is
the pieces alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from npas.tasks.common.tokenization import Tokenizer

CHUNK = 1 << 18  # characters that are tokenized at once, or a line where one is longer


@dataclass(frozen=True)
class Pieces:
    """N pieces of documents, without special tokens, padded with 0 to R tokens.

    A piece is cut in two, its first part `first_N` tokens long and the whole `length_N`.
    """

    ids_NR: np.ndarray  # int32, as the others
    first_N: np.ndarray
    length_N: np.ndarray

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


def count(folder: Path) -> int:
    """Count the documents. ValueError if there are none, or they cannot be read."""
    documents = 0
    for number, _ in read(folder):
        documents = number + 1
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


def cut(lines: Iterable[tuple[int, str]], tokenizer: Tokenizer, room: int) -> Pieces:
    """Cut documents into pieces of at most `room` tokens, at the ends of lines where they have any.

    Each line comes with the number of its document. Each piece is cut in two at the end of a line,
    the one nearest to its middle, or in its middle if it is of one line. A piece of a single token,
    which has no two parts, is dropped.
    """
    # Arrays that grow in place: there is no time when all pieces are held twice.
    ids, firsts, lengths = array("i"), array("i"), array("i")

    def add(ids_T: np.ndarray, pieces: Sequence[Sequence[int]]) -> None:
        """Give pieces, whose tokens follow one another, a row each."""
        length_P = np.array([sum(piece) for piece in pieces], np.int32)
        first_P = np.array([_half(piece) for piece in pieces], np.int32)
        ids_PR = np.zeros((len(pieces), room), np.int32)
        ids_PR[np.arange(room) < length_P[:, None]] = ids_T[: length_P.sum()]
        kept_P = length_P > 1
        for grown, new in ((ids, ids_PR), (firsts, first_P), (lengths, length_P)):
            grown.frombytes(new[kept_P].tobytes())

    left_T = np.zeros(0, np.int32)  # the tokens of the piece that is under way,
    piece: list[int] = []  # and how many each of its lines has
    document = -1
    for chunk in _chunks(lines):
        encoded = tokenizer.encode([line for _, line in chunk])
        ids_T = np.concatenate([left_T, *(np.array(line.ids, np.int32) for line in encoded)])
        ended: list[list[int]] = []
        for (number, _), line in zip(chunk, encoded, strict=True):
            for start in range(0, len(line), room):
                length = min(len(line) - start, room)
                if piece and (number != document or sum(piece) + length > room):
                    ended.append(piece)
                    piece = []
                document = number
                piece.append(length)
        del encoded  # which is many times as large as its ids
        left_T = ids_T[len(ids_T) - sum(piece) :].copy()
        add(ids_T, ended)
    add(left_T, [piece] if piece else [])
    return Pieces(np.asarray(ids).reshape(-1, room), np.asarray(firsts), np.asarray(lengths))


def _chunks(lines: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Yield so many lines at once as make up `CHUNK` characters."""
    chunk: list[tuple[int, str]] = []
    size = 0
    for entry in lines:
        chunk.append(entry)
        size += len(entry[1])
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _half(lines: Sequence[int]) -> int:
    """Return how many tokens the first part of a piece has, from how many each of its lines has."""
    whole = sum(lines)
    return min(accumulate(lines[:-1]), key=lambda end: abs(2 * end - whole), default=whole // 2)
