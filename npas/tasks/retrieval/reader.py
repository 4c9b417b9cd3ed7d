"""Read images and sentences in the format of SCAN (Lee et al. 2018); features stay on disk.

For each split, a folder has `<split>_caps.txt`, five sentences per image, one per line;
`<split>_ims.npy`, floats of images x regions x features, where each image may be repeated for its
five sentences; and optionally `<split>_ids.txt`, the names of images or of sentences.

A sentence is its words between a start and an end token. A word's vector is fixed, and zeros if the
file has none, as for start and end; its id is for an embedding that the network learns.

Dimensions: N images, B of them, R regions of each, D numbers of a region; U sentences, T tokens in
each, V numbers per vector, N rows of the table.
"""

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.tasks.common.word_vectors import split as split_words
from npas.utils.files import reading

PER_IMAGE = 5  # sentences
AT_ONCE = 64  # images that `check` reads at once
NONE, START, END, UNKNOWN = SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
MARKS = 2  # start and end
LEAST = 4  # occurrences in training that a word of the vocabulary needs
_PUT = "put the files there that docs/data.md names, or set data.source=synthetic"


@dataclass(frozen=True)
class Features:
    """The features of a split, in a file that each `read` opens, so that workers can share it."""

    path: Path
    images: int
    step: int  # rows per image: 1 or 5
    regions: int
    width: int

    def read(self, index_B: Tensor) -> Tensor:
        """Return the features of these images, BxRxD, float32.

        Raises ValueError if the file cannot be read, or features are NaN or infinite.
        """
        row_B = index_B.numpy() * self.step
        rows_BRD = np.asarray(_open(self.path)[row_B, : self.regions], np.float32)
        if not np.isfinite(rows_BRD).all():
            raise ValueError(f"{self.path} has non-finite numbers: get it again")
        return torch.from_numpy(rows_BRD)

    def check(self) -> None:
        for index_B in torch.arange(self.images).split(AT_ONCE):
            self.read(index_B)


@dataclass(frozen=True)
class Split:
    """One split: its features, sentences (five consecutive ones per image), and image names."""

    features: Features
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        return self.features.images


def read(folder: Path, split: str, regions: int, width: int) -> Split:
    """Read a split, but only the shape of its features.

    Raises ValueError if a file is missing, damaged, or inconsistent with the others.
    """
    captions, path = _lines(folder / f"{split}_caps.txt"), folder / f"{split}_ims.npy"
    array, count = _open(path), len(captions) // PER_IMAGE
    if array.ndim != 3 or array.dtype.kind != "f" or array.shape[1] < regions:
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, not floats of images x regions x"
            f" numbers with at least task.regions={regions}: get it again, or lower that"
        )
    if array.shape[2] != width:
        raise ValueError(f"{path} has {array.shape[2]} numbers a region: set task.region_width")
    path_ids = folder / f"{split}_ids.txt"
    names = _lines(path_ids) if path_ids.exists() else [str(i) for i in range(count)]
    sizes = (count, len(captions))
    if not count or len(captions) % PER_IMAGE or not {len(array), len(names)} <= set(sizes):
        raise ValueError(
            f"{folder} has {len(captions):,} lines in {split}_caps.txt, {PER_IMAGE} per image, and"
            f" {len(array):,} rows in {path.name} and {len(names):,} names, which do not fit: get"
            " them again"
        )
    names = [name.strip() for name in names[:: len(names) // count]]
    return Split(Features(path, count, len(array) // count, regions, width), captions, names)


def _lines(path: Path) -> list[str]:
    """Return a UTF-8 file's lines, split at LF or CRLF only, not at other line separators."""
    with reading(path, _PUT):
        lines = path.read_bytes().decode().split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _open(path: Path) -> np.ndarray:
    with reading(path, _PUT):
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    return array


# --- words


@dataclass(frozen=True)
class Sentences:
    """Sentences as rows of the vector table and as ids, padded with 0."""

    table_NV: Tensor  # float32; row 0 is zeros
    rows_UT: Tensor  # int32
    ids_UT: Tensor  # int32
    lengths_U: Tensor  # int32

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Return the inputs for these sentences: vectors, ...xTxV; lengths and ids, int64."""
        return {
            "words": self.table_NV[self.rows_UT[index].long()],
            "lengths": self.lengths_U[index].long(),
            "ids": self.ids_UT[index].long(),
        }


def count_words(captions: Iterable[str], known: Container[str] = ()) -> dict[str, int]:
    """Number the words that occur at least LEAST times, most frequent first, after SPECIAL."""
    counts = Counter(word for caption in captions for word in split_words(caption, known))
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
    captions: Sequence[str], vocabulary: Mapping[str, int], rows: Mapping[str, int],
    table_NV: np.ndarray, most: int,
) -> Sentences:  # fmt: skip
    """Convert sentences: the first `most` words of each, between start and end."""
    unknown, known = vocabulary[UNKNOWN], rows.keys() | vocabulary.keys()
    rows_UT = np.zeros((len(captions), most + MARKS), np.int32)
    ids_UT = np.zeros_like(rows_UT)
    lengths_U = np.zeros(len(captions), np.int32)
    for i, caption in enumerate(captions):
        words = split_words(caption, known)[:most]
        rows_UT[i, 1 : len(words) + 1] = [rows.get(word, 0) for word in words]
        ids = [vocabulary.get(word, unknown) for word in words]
        ids_UT[i, : len(words) + MARKS] = [vocabulary[START], *ids, vocabulary[END]]
        lengths_U[i] = len(words) + MARKS
    return Sentences(*map(torch.from_numpy, (table_NV, rows_UT, ids_UT, lengths_U)))
