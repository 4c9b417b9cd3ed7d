"""Turn phrases and sentences into vectors of their words: looked up in a file, or a BERT's own.

A file is text, as GloVe and word2vec give it: a word and its numbers a line. Neither kind of vector
is trained: they are data, and no parameters.

Dimensions: U texts, T places for words in each, V numbers a word, N rows of the table.
"""

from __future__ import annotations

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
from npas.tasks.common.files import reason
from npas.utils.progress import track

BERT_BATCH = 64  # texts
# What GloVe's tokenizer, the Penn Treebank's, cuts off: that's, don't, we're. Not a quoted letter.
CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))(?![\w'])")
WORD = re.compile(r"\w+(?:['-]\w+)*")
APOSTROPHES = str.maketrans("\u2019\u02bc", "''")  # as typography has them


@dataclass(frozen=True)
class Words:
    """The words of some texts: row 0 of the table is none, and stands beyond a text's end."""

    table_NV: Tensor  # float32, float16 of a BERT
    rows_UT: Tensor  # int64
    lengths_U: Tensor  # int64, at least 1: a text of no known word has one of zeros
    unknown: int = 0  # different words that a file has no vector of

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the words, ...xTxV, float32, and the lengths of the texts of these numbers."""
        return self.table_NV[self.rows_UT[index]].float(), self.lengths_U[index]


def split(text: str, known: Container[str] = ()) -> list[str]:
    """Cut a text into its words, in small letters; punctuation is left out.

    What is joined by hyphens is one word if it is known as one. What an apostrophe joins is cut as
    the vectors' own texts were, "don't" into do and n't, and may also come so.
    """
    return [
        part for word in _joined(text) for part in ([word] if word in known else word.split("-"))
    ]


def _joined(text: str) -> list[str]:
    """Cut a text into words, those with hyphens whole."""
    return [
        word
        for piece in CLITIC.sub(r" \1 ", text.lower().translate(APOSTROPHES)).split()
        for word in ([piece] if CLITIC.fullmatch(piece) else WORD.findall(piece))
    ]


def read_vectors(path: Path, width: int, texts: Iterable[str]) -> tuple[dict[str, int], np.ndarray]:
    """Return the vectors that a file has of the texts' words: each one's row, and NxV, float32.

    Row 0 is zeros. Lines of other words are passed over unread; words with spaces in them are never
    wanted. A first line may say how many there are. ValueError, in one line, for a file that is
    missing, is of another width or cut off, or knows none of the words.
    """
    wanted = {word for text in texts for word in _joined(text)}
    wanted |= {part for word in wanted for part in word.split("-")}
    found = dict[str, np.ndarray]()
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(track(file, "reading word vectors"), 1):
                text = line.replace("\t", " ").strip(" \n")
                word = text.partition(" ")[0].lower()
                is_counts = number == 1 and text.replace(" ", "").isdecimal()
                if word not in wanted or word in found or is_counts:
                    continue
                # Not at other white space, which some words of the file hold.
                numbers = [field for field in text.split(" ") if field][1:]
                if len(numbers) == width:
                    found[word] = np.array(numbers, dtype=np.float32)
                elif len(numbers) < width or _is_number(numbers[-width - 1]):
                    raise ValueError(
                        f"line {number} has {len(numbers)} numbers and not {width}: set"
                        " task.word_width to what the file has"
                    )
        if not found:
            raise ValueError("it knows none of the words of these texts: name another file")
        table_NV = np.vstack([np.zeros((1, width), np.float32), *found.values()])
        if not np.isfinite(table_NV).all():
            raise ValueError("it has non-finite numbers")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as word vectors ({reason(error)}): put some there, as GloVe's"
            " glove.6B.300d.txt, or name another file as task.vectors"
        ) from None
    return {word: i for i, word in enumerate(found, 1)}, table_NV


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def look_up(texts: Sequence[str], path: Path, width: int, most: int) -> Words:
    """Return the words of the texts that the file knows, of each the last `most`. ValueError."""
    row, table_NV = read_vectors(path, width, texts)
    cut = [split(text, row) for text in texts]
    known = [[row[word] for word in words if word in row][-most:] for words in cut]
    unknown = len({word for words in cut for word in words if word not in row})
    return Words(torch.from_numpy(table_NV), *_padded(known), unknown)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return rows of numbers with zeros after them, and how many they are, at least 1."""
    lengths_U = torch.tensor([max(1, len(own)) for own in rows])
    tensors = [torch.tensor(own, dtype=torch.int64) for own in rows]
    return pad_sequence(tensors, batch_first=True), lengths_U


@torch.no_grad()
def from_bert(
    texts: Sequence[str],
    name: str,
    width: int,
    most: int,
    device: torch.device,
    download: bool = True,
) -> Words:
    """Return the tokens of the texts as the last layer of a BERT has them, of each the last `most`.

    `name` is a folder, or a name on the Hugging Face hub; its weights stay as they are. ValueError
    if it cannot be had, or is of another width.
    """
    from transformers import AutoModel

    tokenizer = tokenization.load_tokenizer(name, download, "task.bert")
    files = ("config.json", "model.safetensors")
    folder = _hub.find_folder("task.bert", name, files, files, download=download)
    try:
        with _hub.quietly():
            bert = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    except Exception as error:  # whatever a broken file makes its readers say
        raise ValueError(f"task.bert={name} cannot be read ({reason(error)})") from error
    if bert.config.hidden_size != width:
        raise ValueError(
            f"task.bert={name} gives {bert.config.hidden_size} numbers a word, and task.word_width="
            f"{width}: set it to that"
        )
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
