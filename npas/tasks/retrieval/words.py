"""Convert sentences to word vectors and word ids.

A sentence is its words between a start and an end token. A word's vector is fixed, and zeros if the
file has none, as for start and end; its id is for an embedding that the network learns.

Dimensions: U sentences, T tokens in each, V numbers per vector, N rows of the table.
"""

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.tasks.common.word_vectors import split
from npas.utils.files import reading

NONE, START, END, UNKNOWN = SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
MARKS = 2  # start and end
LEAST = 4  # occurrences in training that a word of the vocabulary needs


@dataclass(frozen=True)
class Sentences:
    """Sentences as rows of the vector table and as ids, padded with 0."""

    table_NV: Tensor  # float32; row 0 is zeros
    rows_UT: Tensor  # int32
    ids_UT: Tensor  # int32
    lengths_U: Tensor  # int32

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Return the inputs for these sentences: vectors, ...xTxV float32; lengths, ids, int64."""
        return {
            "words": self.table_NV[self.rows_UT[index].long()],
            "lengths": self.lengths_U[index].long(),
            "ids": self.ids_UT[index].long(),
        }


def count_words(captions: Iterable[str], known: Container[str] = ()) -> dict[str, int]:
    """Number the words that occur at least LEAST times, most frequent first, after SPECIAL.

    A hyphenated word is split unless it is in `known`.
    """
    counts = Counter(word for caption in captions for word in split(caption, known))
    often = [word for word, count in counts.items() if count >= LEAST]
    often.sort(key=lambda word: (-counts[word], word))
    return {word: i for i, word in enumerate([*SPECIAL, *often])}


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read SCAN's vocabulary, words and their ids; raises ValueError for another file."""
    with reading(path, "get it again, or move it away to build one from the training sentences"):
        found = dict(json.loads(path.read_text(encoding="utf-8"))["word2idx"])
        if sorted(found.values()) != list(range(len(found))) or found[NONE]:
            raise ValueError(f"its {len(found):,} words are not numbered from {NONE}, 0")
        if not found.keys() >= set(SPECIAL):
            raise ValueError(f"it must have {', '.join(SPECIAL)}")
    return found


def look_up(
    captions: Sequence[str],
    vocabulary: Mapping[str, int],
    rows: Mapping[str, int],
    table_NV: np.ndarray,
    most: int,
) -> Sentences:
    """Convert sentences: the first `most` words of each, between start and end.

    A hyphenated word is split unless it has a vector or an id.
    """
    unknown, known = vocabulary[UNKNOWN], rows.keys() | vocabulary.keys()
    rows_UT = np.zeros((len(captions), most + MARKS), np.int32)
    ids_UT = np.zeros_like(rows_UT)
    lengths_U = np.zeros(len(captions), np.int32)
    for i, caption in enumerate(captions):
        words = split(caption, known)[:most]
        rows_UT[i, 1 : len(words) + 1] = [rows.get(word, 0) for word in words]
        ids = [vocabulary.get(word, unknown) for word in words]
        ids_UT[i, : len(words) + MARKS] = [vocabulary[START], *ids, vocabulary[END]]
        lengths_U[i] = len(words) + MARKS
    return Sentences(*map(torch.from_numpy, (table_NV, rows_UT, ids_UT, lengths_U)))
