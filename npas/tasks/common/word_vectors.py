"""Represent texts as sequences of word vectors, from a file or from the last layer of a BERT.

The file is in the text format of GloVe and word2vec: each line a word and its numbers. The vectors
are data, not parameters: they are not trained.

Dimensions: U texts, T words per text, V numbers per vector, N rows of the table.
"""

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from npas.models import _hub
from npas.tasks.common import tokenization
from npas.utils.files import reading
from npas.utils.progress import track

BERT_BATCH = 64  # texts
# Split off by GloVe's tokenizer (Penn Treebank): that's, don't, we're. Not a quoted letter.
CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))(?![\w'])")
NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?")
WORD = re.compile(r"\w+(?:['-]\w+)*")
APOSTROPHES = str.maketrans("\u2019\u02bc", "''")  # typographic ones


@dataclass(frozen=True)
class Words:
    """The word vectors of texts; row 0 of the table is zeros, for padding."""

    table_NV: Tensor  # float32, from a BERT float16
    rows_UT: Tensor  # int64
    lengths_U: Tensor  # int64, at least 1: a text without known words has one zero vector

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the word vectors, ...xTxV, float32, and the lengths of the indexed texts."""
        return self.table_NV[self.rows_UT[index]].float(), self.lengths_U[index]


def split(text: str, known: Container[str] = ()) -> list[str]:
    """Split a text into lower-case words, without punctuation.

    A hyphenated word is split unless it is in `known`. Contractions are split as in GloVe's
    training texts: "don't" into do and n't, also if the text has them split already.
    """
    return [
        part for word in _joined(text) for part in ([word] if word in known else word.split("-"))
    ]


def _joined(text: str) -> list[str]:
    """Split a text into words, but not at hyphens."""
    return [
        word
        for piece in CLITIC.sub(r" \1 ", text.lower().translate(APOSTROPHES)).split()
        for word in ([piece] if CLITIC.fullmatch(piece) else WORD.findall(piece))
    ]


def read_vectors(path: Path, width: int, texts: Iterable[str]) -> tuple[dict[str, int], np.ndarray]:
    """Read the vectors of the texts' words: return each word's row, and the table, NxV, float32.

    Row 0 is zeros. Lines of other words are not parsed; entries with spaces in the word are
    ignored. The first line may hold counts. Raises ValueError for a file that is missing or
    truncated, has another width, or has none of the words.
    """
    wanted = {word for text in texts for word in _joined(text)}
    wanted |= {part for word in wanted for part in word.split("-")}
    found = dict[str, np.ndarray]()
    remedy = "put GloVe's glove.6B.300d.txt there, or set task.vectors to another file"
    with reading(path, remedy), open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(track(file, "reading word vectors"), 1):
            # Split at spaces only: some words of the file contain other white space.
            word, *fields = line.replace("\t", " ").strip(" \n").split(" ")
            is_counts = number == 1 and len(fields) == 1 and word.isdecimal()
            if (word := word.lower()) not in wanted or word in found or is_counts:
                continue
            numbers = [field for field in fields if field]
            if len(numbers) == width:
                found[word] = np.array(numbers, dtype=np.float32)
            elif len(numbers) < width or NUMBER.fullmatch(numbers[-width - 1]):
                raise ValueError(f"line {number} has {len(numbers)} numbers: set task.word_width")
        if not found:
            raise ValueError("it has none of the words of these texts")
    table_NV = np.vstack([np.zeros((1, width), np.float32), *found.values()])
    return {word: i for i, word in enumerate(found, 1)}, table_NV


def look_up(texts: Sequence[str], path: Path, width: int, most: int) -> Words:
    """Return the texts' words that the file has, of each text the last `most`."""
    row, table_NV = read_vectors(path, width, texts)
    known = [[row[word] for word in split(text, row) if word in row][-most:] for text in texts]
    return Words(torch.from_numpy(table_NV), *_padded(known))


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths_U = torch.tensor([max(1, len(own)) for own in rows])
    tensors = [torch.tensor(own, dtype=torch.int64) for own in rows]
    return pad_sequence(tensors, batch_first=True), lengths_U


@torch.no_grad()
def from_bert(
    texts: Sequence[str], name: str, width: int, most: int, device: torch.device,
    download: bool = True,
) -> Words:  # fmt: skip
    """Return the last layer's states of a BERT for the texts, of each text the last `most` tokens.

    `name` is a folder, or a name on the Hugging Face hub. The BERT is not trained. Raises
    ValueError if it cannot be loaded or has another width.
    """
    from transformers import AutoModel

    tokenizer = tokenization.load_tokenizer(name, download, "task.bert")
    files = ("config.json", "model.safetensors")
    folder = _hub.find_folder("task.bert", name, files, files, download=download)
    with _hub.reading(f"task.bert={name}"):
        bert = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    if (found := bert.config.hidden_size) != width:
        raise ValueError(f"task.bert={name} needs task.word_width={found}, not {width}")
    first, last = tokenizer.special["cls"], tokenizer.special["sep"]
    ids = [[first, *own.ids[-most:], last] for own in tokenizer.encode(texts)]
    table = [torch.zeros(1, width, dtype=torch.float16)]
    rows, used = [], 1
    for start in range(0, len(ids), BERT_BATCH):
        ids_BL, lengths_B = _padded(ids[start : start + BERT_BATCH])
        mask_BL = (torch.arange(ids_BL.shape[1]) < lengths_B[:, None]).long()
        states_BLV = bert(ids_BL.to(device), attention_mask=mask_BL.to(device)).last_hidden_state
        for states_LV, length in zip(states_BLV, lengths_B.tolist(), strict=True):
            table.append(states_LV[1 : length - 1].half().cpu())
            rows.append(range(used, used + length - 2))
            used += length - 2
    return Words(torch.cat(table), *_padded(rows))
