"""Turn phrases and sentences into vectors of their words: looked up in a file, or a BERT's own.

A file is text, as GloVe and word2vec give it: a word and its numbers a line. Neither kind of vector
is trained: they are data, and no parameters.

Dimensions: U texts, T places for words in each, V numbers a word, N rows of the table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npas.models import _hub
from npas.tasks.common import tokenization
from npas.tasks.common.files import reason

log = logging.getLogger(__name__)

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


def spellings(texts: Iterable[str]) -> set[str]:
    """Return all words that `split` may make of the texts, whichever of them are known."""
    joined = {word for text in texts for word in _joined(text)}
    return joined | {part for word in joined for part in word.split("-")}


def _joined(text: str) -> list[str]:
    """Cut a text into words, those with hyphens whole."""
    pieces = CLITIC.sub(r" \1 ", text.lower().translate(APOSTROPHES)).split()
    return [
        word
        for piece in pieces
        for word in ([piece] if CLITIC.fullmatch(piece) else WORD.findall(piece))
    ]


def read_vectors(path: Path, width: int, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the vectors that a file has of the wanted words: float32, `width` of them each.

    Lines of other words are passed over unread; words with spaces in them are never wanted. A first
    line may say how many there are. A wanted word whose line has another width is left out, with a
    warning. ValueError, in one line, for a file that is missing, or where that is most words.
    """
    wanted, found = set(wanted), dict[str, np.ndarray]()
    odd, first, line = 0, "", "\n"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                text = line.replace("\t", " ").strip(" \n")
                word = text.partition(" ")[0].lower()
                if word not in wanted or word in found:
                    continue
                # Not at other white space, which some words of the file hold.
                fields = [field for field in text.split(" ") if field]
                if number == 1 and _counts(fields):
                    continue
                if len(fields) == width + 1:
                    found[word] = np.array(fields[1:], dtype=np.float32)
                elif not _goes_on(fields, width):
                    odd += 1
                    first = first or f"line {number} has {len(fields) - 1} numbers and not {width}"
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: put word vectors there, as GloVe's glove.6B.300d.txt, or name"
            " another file as task.vectors"
        ) from None
    except (OSError, ValueError) as error:
        said = reason(error)
        raise ValueError(f"{path} cannot be read as word vectors ({said}): get it again") from None
    if odd > len(found):
        raise ValueError(
            f"{path}: {odd:,} of {odd + len(found):,} words are of another width, {first}: set"
            " task.word_width to what the file has"
        )
    for word, vector in found.items():
        if not np.isfinite(vector).all():
            raise ValueError(f"{path}: {word} has non-finite numbers: get the file again")
    if not line.endswith("\n"):
        log.warning("%s ends within a line: it may be cut off, and lack words", path)
    if odd:
        log.warning(
            "%s: %d of %d words are of another width and left out: %s",
            *(path, odd, odd + len(found), first),
        )
    return found


def _counts(fields: Sequence[str]) -> bool:
    """Return whether a line says how many words there are, and how many numbers of each."""
    return len(fields) == 2 and all(field.isdecimal() for field in fields)


def _goes_on(fields: Sequence[str], width: int) -> bool:
    """Return whether a line's word has a space: what precedes the numbers is no number."""
    if len(fields) <= width + 1:
        return False
    try:
        float(fields[-width - 1])
    except ValueError:
        return True
    return False


def look_up(texts: Sequence[str], path: Path, width: int, most: int) -> Words:
    """Return the words of the texts that the file knows, of each the last `most`.

    ValueError if it cannot be read, or knows none of them.
    """
    vectors = read_vectors(path, width, spellings(texts))
    if not vectors:
        raise ValueError(f"{path} knows none of the words of these texts: name another file")
    row = {word: i for i, word in enumerate(vectors, 1)}
    cut = [split(text, row) for text in texts]
    known = [[row[word] for word in words if word in row][-most:] for words in cut]
    unknown = len({word for words in cut for word in words if word not in row})
    table_NV = np.vstack([np.zeros((1, width), np.float32), *vectors.values()])
    return Words(torch.from_numpy(table_NV), *_padded(known), unknown)


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
