"""Turn sentences into vectors and numbers of their words, place by place.

A sentence is its words between two marks of where it starts and ends. A word's vector is data, and
zeros where the file has none, as for the marks; its number is for what a network learns of it.

Dimensions: U sentences, T places in each, V numbers a word, N rows of the table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.tasks.common.files import reason
from npas.tasks.common.word_vectors import split

NONE, START, END, UNKNOWN = SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
MARKS = 2
LEAST = 4  # times that a word must come up in training to be learned by itself


@dataclass(frozen=True)
class Sentences:
    """The places of sentences: rows of the table, words' numbers, 0 from a length on."""

    table_NV: Tensor  # float32; row 0 is zeros
    rows_UT: Tensor  # int32, as the others
    ids_UT: Tensor
    lengths_U: Tensor

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Return what networks read of these sentences: ...xTxV in float32, and int64."""
        return {
            "words": self.table_NV[self.rows_UT[index].long()],
            "lengths": self.lengths_U[index].long(),
            "ids": self.ids_UT[index].long(),
        }


def count_words(captions: Iterable[str], known: Container[str] = ()) -> dict[str, int]:
    """Number the words that come up often enough, most frequent first, after the four marks.

    What is joined by hyphens is one word if it is known as one.
    """
    counts = Counter(word for caption in captions for word in split(caption, known))
    often = [word for word, count in counts.items() if count >= LEAST]
    often.sort(key=lambda word: (-counts[word], word))
    return {word: i for i, word in enumerate([*SPECIAL, *often])}


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read a vocabulary as SCAN stores it, words and their numbers. ValueError for another file."""
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))["word2idx"])
        if any(type(number) is not int for number in found.values()):
            raise ValueError("a word's number is no whole number")
        if sorted(found.values()) != list(range(len(found))):
            raise ValueError(f"its {len(found):,} words are not numbered from 0 on")
        if not found.keys() >= set(SPECIAL) or found[NONE]:
            raise ValueError(f"{', '.join(SPECIAL)} are not all there, the first as 0")
    except (OSError, ValueError, TypeError, KeyError) as error:
        said = "it has no word2idx" if isinstance(error, (TypeError, KeyError)) else reason(error)
        raise ValueError(
            f"{path} cannot be read as a vocabulary ({said}): get it again, or move it away to"
            " take the training sentences' own"
        ) from None
    return found


def look_up(
    captions: Sequence[str],
    vocabulary: Mapping[str, int],
    rows: Mapping[str, int],
    table_NV: np.ndarray,
    most: int,
) -> Sentences:
    """Return the places of sentences: of each the first `most` words, and the two marks.

    What is joined by hyphens is one word if it has a vector or a number of its own.
    """
    unknown, known = vocabulary[UNKNOWN], rows.keys() | vocabulary.keys()
    rows_UT = np.zeros((len(captions), most + MARKS), np.int32)
    ids_UT = np.zeros_like(rows_UT)
    lengths_U = np.zeros(len(captions), np.int32)
    for i, caption in enumerate(captions):
        words = split(caption, known)[:most]
        rows_UT[i, 1 : len(words) + 1] = [rows.get(word, 0) for word in words]
        numbers = [vocabulary.get(word, unknown) for word in words]
        ids_UT[i, : len(words) + MARKS] = [vocabulary[START], *numbers, vocabulary[END]]
        lengths_U[i] = len(words) + MARKS
    return Sentences(*map(torch.from_numpy, (table_NV, rows_UT, ids_UT, lengths_U)))


def describe(
    captions: Iterable[str], vocabulary: Mapping[str, int], rows: Mapping[str, int], most: int
) -> str:
    """Return which words have no vector or number, and how many sentences are cut."""
    cut = [split(caption, rows.keys() | vocabulary.keys()) for caption in captions]
    counts = Counter(word for words in cut for word in words[:most])
    unknown = sum(count for word, count in counts.items() if word not in vocabulary)
    return (
        f"{unknown:,} of {counts.total():,} word occurrences are {UNKNOWN};"
        f" {len(counts.keys() & rows.keys()):,} of {len(counts):,} words have vectors;"
        f" {sum(len(words) > most for words in cut):,} sentences are longer than {most} words and"
        " lose the rest"
    )
