"""Turn phrases and sentences into vectors of their words: looked up in a file, or a BERT's own.

A file is text, as GloVe and word2vec give it: a word and its numbers a line. Neither kind of vector
is trained: they are data, and no parameters.

Dimensions: U texts, T places for words in each, V numbers a word, N rows of the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.models import _hub
from npas.tasks import _text

BERT_BATCH = 64  # texts


@dataclass(frozen=True)
class Words:
    """Hold the words of some texts: row 0 of the table is none, and stands beyond a text's end."""

    table_NV: Tensor  # float32, float16 of a BERT
    rows_UT: Tensor  # int64
    lengths_U: Tensor  # int64, at least 1: a text of no known word has one of zeros

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the words, ...xTxV, float32, and the lengths of the texts of these numbers."""
        return self.table_NV[self.rows_UT[index]].float(), self.lengths_U[index]


def split(text: str) -> list[str]:
    """Cut a text into its words, in small letters; punctuation is left out."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def read_vectors(path: Path, width: int, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the vectors that a file has of the wanted words: float32, `width` of them each.

    A first line that says how many there are is passed over. ValueError, in one line, for a file
    that is missing, of another width or no text.
    """
    wanted, found = set(wanted), dict[str, np.ndarray]()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                if len(values) != width:
                    raise ValueError(
                        f"line {number} has {len(values)} numbers and not {width}: set"
                        " task.word_width to what the file has"
                    )
                if word.lower() in wanted:
                    found.setdefault(word.lower(), np.array(values, dtype=np.float32))
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: put word vectors there, as GloVe's glove.6B.300d.txt, or name"
            " another file as task.vectors"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read as word vectors ({reason})") from None
    for word, vector in found.items():
        if not np.isfinite(vector).all():
            raise ValueError(f"{path} cannot be read as word vectors ({word} has no finite ones)")
    return found


def look_up(texts: Sequence[str], path: Path, width: int, most: int) -> Words:
    """Return the words of the texts that the file knows, of each the last `most`.

    ValueError if it cannot be read, or knows none of them.
    """
    cut = [split(text) for text in texts]
    vectors = read_vectors(path, width, {word for words in cut for word in words})
    if not vectors:
        raise ValueError(f"{path} knows none of the words of these texts: name another file")
    row = {word: i for i, word in enumerate(vectors, 1)}
    known = [[row[word] for word in words if word in row][-most:] for words in cut]
    table_NV = np.vstack([np.zeros((1, width), np.float32), *vectors.values()])
    return Words(torch.from_numpy(table_NV), *_padded(known))


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return rows of numbers with zeros after them, and how many they are, at least 1."""
    lengths_U = torch.tensor([max(1, len(own)) for own in rows])
    rows_UT = torch.zeros(len(rows), int(lengths_U.max()), dtype=torch.int64)
    for i, own in enumerate(rows):
        rows_UT[i, : len(own)] = torch.tensor(own, dtype=torch.int64)
    return rows_UT, lengths_U


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

    tokenizer = _text.load_tokenizer(name, download, "task.bert")
    files = ("config.json", "model.safetensors")
    folder = _hub.find_folder("task.bert", name, files, files, download=download)
    try:
        with _hub.quietly():
            bert = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    except Exception as error:  # whatever a broken file makes its readers say
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"task.bert={name} cannot be read ({reason[:200]})") from error
    if bert.config.hidden_size != width:
        raise ValueError(
            f"task.bert={name} gives {bert.config.hidden_size} numbers a word, and task.word_width="
            f"{width}: set it to that"
        )
    ends = tokenizer.special("cls"), tokenizer.special("sep")
    ids = [[ends[0], *own.ids[-most:], ends[1]] for own in tokenizer.encode(texts)]
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
