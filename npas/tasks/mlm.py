"""Pre-train on plain text with masked language modelling and sentence order prediction.

In `text/*.txt` (UTF-8) a line is a sentence or a paragraph, and an empty line separates documents.
Documents are cut into pieces of a limited length; a sample is a piece of two parts.

Masking is BERT's (Devlin et al. 2019, arXiv 1810.04805): of the 15% of tokens that are chosen, 80%
are replaced by [MASK], 10% by a random token, and 10% are kept. The order of two neighbouring parts
is ALBERT's task (Lan et al. 2020, arXiv 1909.11942): half of the pairs are swapped.

Every process tokenizes all of the text at every start, about half a million tokens a second on two
CPU cores (measured), and keeps it on the device at 4 bytes per token, padding included.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks import base
from npas.tasks.base import Batch, Metrics
from npas.tasks.common import synthetic_text, tokenization
from npas.tasks.common.measure import measure
from npas.utils import files, rng
from npas.utils.checks import Ranged
from npas.utils.progress import track

EVAL_BATCH = 32
HELD_OUT_SEED = 0  # held-out documents and their masks are the same for every run
SPECIAL = 3  # [CLS] before the first part, [SEP] after each
SYNTHETIC_LENGTH = 64
NOT_HIDDEN = -100  # ignored by cross-entropy
LINES = 1024  # tokenized at once


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of pre-training; `tokenizer` is a folder, or a name on the hub."""

    family: str = "mlm"
    max_length: Annotated[int, "[5, 100000]"] = 128  # tokens per sample
    mask_rate: Annotated[float, "(0, 1)"] = 0.15  # of its tokens
    held_out: Annotated[float, "(0, 1)"] = 0.05  # of the documents
    tokenizer: str = "bert-large-uncased"


class Task(tokenization.TextTask):
    """Predict masked tokens, and whether two parts of a text are in order."""

    name = "text"
    selection_metric = "mlm_accuracy"

    def prepare(self) -> None:
        base.refuse_val_fraction(self.data, "plain text", "of which task.held_out is held out")
        self.length = self.at_most(SYNTHETIC_LENGTH, self.config.max_length)
        self.spec = InputSpec((self.length,), 2, outputs="pretraining")

    def write(self) -> None:
        made = self.data.synthetic
        synthetic_text.write_texts(self.root, made.train + made.test)

    def ensure(self) -> None:
        files.listed(self.root / "text", "*.txt")

    def load(self) -> dict[str, Pieces]:
        folder, made = self.root / "text", self.data.synthetic
        is_real = self.source == "real"
        fraction = self.config.held_out if is_real else made.test / (made.train + made.test)
        documents = max((number + 1 for number, _ in read_lines(folder)), default=0)
        held = tokenization.held_out(documents, fraction, "text held out")
        self.counted: dict[str, str] = {}
        parts: dict[str, Pieces] = {}
        for name, count in (("train", documents - len(held)), ("test", len(held))):
            own = (line for line in read_lines(folder) if (line[0] in held) == (name == "test"))
            arrays = cut(own, self.tokenizer, self.length - SPECIAL)
            pieces = Pieces(*(torch.from_numpy(array).to(self.device) for array in arrays))
            if not len(pieces):
                raise ValueError(f"{folder} leaves no text for the {name} part: add documents")
            parts[name] = pieces
            self.counted[name] = (
                f"{count:,} documents, {int(pieces.length_N.sum()):,} tokens in {len(pieces):,}"
                f" samples of at most {self.length}"
            )
        return parts

    def inspect(self) -> dict[str, str]:
        return self.counted | self.tokenizer.line()

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        hidden = self._hidden(self.parts["train"], index_B, self.seed, f"train {epoch}")
        return Batch(*hidden, len(index_B))

    def _hidden(
        self, part: Pieces, index_B: Tensor, seed: int, purpose: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return inputs and targets: functions of seed, purpose and index."""

        def key(what: str) -> int:
            return rng.derive_key(seed, purpose, what)

        first_B, length_B = part.first_N[index_B].long(), part.length_N[index_B].long()
        swapped_B = rng.integers(key("swap"), index_B, 2)
        lead_B = torch.where(swapped_B == 1, length_B - first_B, first_B)  # length of what is first
        position_L = torch.arange(self.length, device=self.device)
        text_BL = position_L - 1 - (position_L > lead_B[:, None]).long()  # without special tokens
        is_word_BL = (position_L > 0) & (position_L != lead_B[:, None] + 1)
        is_word_BL &= position_L < length_B[:, None] + SPECIAL - 1
        from_BL = (text_BL + (swapped_B * first_B)[:, None]) % length_B[:, None]
        words_BL = part.ids_NR[index_B].long().gather(1, from_BL)
        special = self.tokenizer.special
        is_text_BL = position_L < length_B[:, None] + SPECIAL
        ids_BL = torch.where(is_text_BL, special["sep"], special["pad"])
        ids_BL[:, 0] = special["cls"]
        ids_BL = torch.where(is_word_BL, words_BL, ids_BL)

        counter_BL = index_B[:, None] * self.length + position_L
        draw_BL = rng.integers(key("hide"), counter_BL, 2**31)
        order_BL = draw_BL.masked_fill(~is_word_BL, 2**31).argsort(dim=1, stable=True)
        count_B = (length_B * self.config.mask_rate).round().clamp(min=1)
        most = max(1, round((self.length - SPECIAL) * self.config.mask_rate))
        hidden_BM = order_BL[:, :most]
        is_hidden_BM = torch.arange(most, device=self.device) < count_B[:, None]
        words_BM = ids_BL.gather(1, hidden_BM)
        counter_BM = counter_BL.gather(1, hidden_BM)
        how_BM = rng.integers(key("how"), counter_BM, 10)
        any_BM = rng.integers(key("word"), counter_BM, self.tokenizer.size)
        shown_BM = torch.where(
            how_BM < 8, special["mask"], torch.where(how_BM < 9, any_BM, words_BM)
        )
        shown_BM = torch.where(is_hidden_BM, shown_BM, words_BM)
        given = tokenization.inputs(
            ids_BL.scatter(1, hidden_BM, shown_BM), lead_B + 2, length_B + SPECIAL
        )
        words_BM = words_BM.masked_fill(~is_hidden_BM, NOT_HIDDEN)
        return given, {"places": hidden_BM, "words": words_BM, "swapped": swapped_B}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of masked tokens plus that of the order, and both accuracies.

        Token losses are averaged per sample first: the loss does not depend on the number of ranks.
        """
        counted_B5 = _count(model, *batch[:2])
        hidden_B, lost_B, right_B, order_B, in_order_B = counted_B5.unbind(1)
        loss = (lost_B / hidden_B + order_B).mean()
        return loss, {
            "mlm_accuracy": 100 * (right_B / hidden_B).sum().detach(),
            "sop_accuracy": 100 * in_order_B.sum().detach(),
        }

    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        """Measure accuracies on "test", of masked tokens and of order, in percent, and losses.

        `perplexity` is of masked tokens; `loss` is their mean loss plus the mean loss of the order.
        """
        part = self.parts[split]
        cuts = torch.arange(len(part), device=self.device).split(EVAL_BATCH)

        def count(i: int) -> tuple[Tensor, ...]:
            counted_B5 = _count(model, *self._hidden(part, cuts[i], HELD_OUT_SEED, split))
            return counted_B5.sum(0, dtype=torch.float64).unbind()

        counted_E5 = measure(model, count, len(cuts), 5, rank, world, self.device)
        hidden, lost, right, order, in_order = counted_E5.sum(0).tolist()
        return {
            "mlm_accuracy": 100 * right / hidden,
            "sop_accuracy": 100 * in_order / len(part),
            "perplexity": math.exp(min(lost / hidden, 700)),  # more would overflow
            "loss": lost / hidden + order / len(part),
        }


def _count(model: nn.Module, given: dict[str, Tensor], asked: dict[str, Tensor]) -> Tensor:
    """Return five figures per sample, Bx5.

    The number of masked tokens, their summed loss, and the number of correct predictions; the loss
    of the order, and whether it is correct.
    """
    found = model(**given, places_BM=asked["places"])
    # BERT's next sentence head, or ALBERT's sentence order head: 0 in order, 1 swapped.
    order = "seq_relationship_logits" if "seq_relationship_logits" in found else "sop_logits"
    order_B2, swapped_B = found[order].float(), asked["swapped"]
    words_BM = asked["words"]
    words_BVM = found["prediction_logits"].float().transpose(1, 2)
    lost_BM = F.cross_entropy(words_BVM, words_BM, ignore_index=NOT_HIDDEN, reduction="none")
    return torch.stack(
        [
            (words_BM != NOT_HIDDEN).sum(1).float(),
            lost_BM.sum(1),
            (words_BVM.detach().argmax(1) == words_BM).sum(1).float(),
            F.cross_entropy(order_B2, swapped_B, reduction="none"),
            (order_B2.detach().argmax(1) == swapped_B).float(),
        ],
        1,
    )


# --- the text


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


def read_lines(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield (document number from 0, line) for the non-empty lines of all files, sorted by name."""
    document = 0
    for path in files.listed(folder, "*.txt"):
        inside = False
        with files.reading(path, "convert it to UTF-8 text"), path.open(encoding="utf-8") as file:
            # Like str.splitlines, split at form feeds and the like, too.
            for line in chain.from_iterable(map(str.splitlines, file)):
                if text := line.strip():
                    yield document, text
                elif inside:
                    document += 1
                inside = bool(text)
        document += inside


def cut(
    lines: Iterable[tuple[int, str]], tokenizer: tokenization.Tokenizer, room: int
) -> tuple[np.ndarray, ...]:
    """Cut documents, given as (document number, line), to the arrays of `Pieces` of `room` tokens.

    Pieces end at line ends where possible. A piece's first part ends at the line end nearest to
    its middle, or in the middle if it is a single line. Pieces of a single token are dropped.
    """
    # Arrays grow in place: lists would hold all pieces twice for a time.
    ids, firsts, lengths = array("i"), array("i"), array("i")

    def add(piece: list[list[int]]) -> None:
        whole = list(chain(*piece))
        if len(whole) > 1:
            ids.extend(whole + [0] * (room - len(whole)))
            ends, middle = accumulate(map(len, piece[:-1])), len(whole) // 2
            firsts.append(min(ends, key=lambda end: abs(2 * end - len(whole)), default=middle))
            lengths.append(len(whole))

    document, piece = -1, list[list[int]]()  # the current document, and the lines of the piece
    entries = iter(track(lines, "tokenizing lines"))
    while some := list(islice(entries, LINES)):
        for (number, _), own in zip(some, tokenizer.encode([t for _, t in some]), strict=True):
            for start in range(0, len(own.ids), room):
                part = own.ids[start : start + room]
                if piece and (number != document or sum(map(len, piece)) + len(part) > room):
                    add(piece)
                    piece = []
                document = number
                piece.append(part)
    add(piece)
    return np.asarray(ids).reshape(-1, room), np.asarray(firsts), np.asarray(lengths)
