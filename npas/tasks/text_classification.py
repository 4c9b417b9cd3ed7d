"""Classify your own texts: rows of CSV, TSV or JSON-lines files with a text and a label.

    data.root/reviews/train.csv      text,label
    data.root/reviews/test.csv       "A film to see twice.",good

`task.train_file` and `task.test_file` are the paths, `task.text` and `task.label` the columns. The
dataset's name in results is the folder, or else the training file's name. A checkpoint is selected
on `task.val_file`, or on `data.val_fraction` of each class of the training texts. Labels are
strings or integers; a run stores them as `task.class_names`. Texts are truncated to
`task.max_length` tokens.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks.base import Batch, measure, outputs
from npas.tasks.classification import hold_out
from npas.tasks.common import synthetic_text, tokenization
from npas.utils.checks import within

if TYPE_CHECKING:
    from npas.config import DataConfig

EVAL_BATCH = 32  # small enough that each of many ranks gets some batches
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".json")
SYNTHETIC_LENGTH = 64


@dataclass
class Config:
    """The `task.*` keys of own texts: files under `data.root`, and their columns.

    `tokenizer` is a folder, or a name on the Hugging Face hub. `class_names` are the labels, in the
    order of the network's classes; empty: those of `train_file`, sorted.
    """

    family: str = "text_classification"
    train_file: str = "texts/train.csv"
    test_file: str = "texts/test.csv"
    val_file: str | None = None
    text: str = "text"  # column names
    label: str = "label"
    class_names: list[str] = field(default_factory=list)
    max_length: int = 128  # tokens per text
    tokenizer: str = "bert-base-uncased"

    def __post_init__(self) -> None:
        within("task", self, {"max_length": (3, 100_000)})
        named = {part: getattr(self, f"{part}_file") for part in ("train", "test", "val")}
        named = {part: name for part, name in named.items() if name is not None}
        for part, name in named.items():
            if Path(name).suffix.lower() not in (*SEPARATORS, *JSON_LINES):
                endings = ", ".join((*SEPARATORS, *JSON_LINES))
                raise ValueError(f"task.{part}_file={name} must end in one of {endings}")
        if len({os.path.normpath(name) for name in named.values()}) < len(named):
            raise ValueError(
                "task.train_file, task.test_file and task.val_file must be different files"
            )
        if self.text == self.label:
            raise ValueError(f"task.text and task.label are both {self.text}: name two columns")
        if len(self.class_names) == 1 or len(set(self.class_names)) < len(self.class_names):
            raise ValueError("task.class_names must be at least two different labels; [] for all")

    @property
    def files(self) -> dict[str, str]:
        """Return the file of each split."""
        found = {"train": self.train_file, "test": self.test_file}
        return found if self.val_file is None else found | {"val": self.val_file}


def settle(config: Config, data: DataConfig) -> Config:
    """Return the config with the labels read from the training file, if it exists."""
    train = Path(data.root, config.train_file)
    if data.source != "real" or config.class_names or not train.is_file():
        return config
    return replace(config, class_names=_labels(train, config))


def _labels(path: Path, config: Config) -> list[str]:
    """Return a file's labels, sorted: as numbers if all are integers, else alphabetically."""
    status = path.stat()
    version = (status.st_mtime_ns, status.st_size)
    return list(_read_labels(path, config.text, config.label, version))


@functools.lru_cache(maxsize=8)  # for the jobs of a sweep
def _read_labels(path: Path, text: str, label: str, version: object) -> tuple[str, ...]:
    found = {row[1] for row in read(path, text, label)}
    if len(found) < 2:
        raise ValueError(f"{path} has only the label {min(found)!r}: a task needs two classes")
    whole = all(name.removeprefix("-").isdecimal() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name) if whole else (0, name)))


def read(path: Path, text: str, label: str) -> Iterator[tuple[str, str]]:
    """Yield each row's text and label; raises ValueError that names the file and the row."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in _rows(file, path.suffix.lower()):  # noqa: B007 (for messages)
                if row is None:
                    raise ValueError("it is not a JSON object: write one object per line")
                if None in row:
                    raise ValueError("more columns than in the first line: quote the text")
                for column in (text, label):
                    if column not in row:
                        columns = ", ".join(map(str, list(row)[:10]))[:200]
                        raise ValueError(
                            f"no column {column!r} among {columns}: set task.text and task.label"
                        )
                found, name = row[text], row[label]
                if isinstance(name, (bool, int)):  # in JSON
                    name = str(name).lower()
                if not isinstance(found, str) or not isinstance(name, str) or not name.strip():
                    raise ValueError("the text or the label is missing, or is not a string")
                yield found, name.strip()
        if not number:
            raise ValueError("it has no rows")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): convert it") from None
    except csv.Error as error:
        raise ValueError(f"{path}, after line {max(1, number)}: {error}") from None
    except ValueError as error:
        where = f", line {number}" if number else ""
        raise ValueError(f"{path}{where}: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def _rows(file: Any, suffix: str) -> Iterator[tuple[int, dict[Any, Any] | None]]:
    """Yield rows as dicts, None for an invalid one, each with the number of its (last) line."""
    if suffix in SEPARATORS:
        table = csv.DictReader(file, delimiter=SEPARATORS[suffix], strict=True)
        for row in table:
            yield table.line_num, row
        return
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        found: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
        yield number, found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Part:
    """The texts of one split, N, padded to L tokens, on the device."""

    ids_NL: Tensor  # int32
    length_N: Tensor  # int32
    label_N: Tensor  # int32
    cut_N: Tensor  # bool: whether the text was truncated

    def __len__(self) -> int:
        return len(self.label_N)

    def inputs(self, own: Tensor | slice) -> dict[str, Tensor]:
        """Return the network's inputs for these texts, with a mask BxL that all networks take."""
        ids_BL, length_B = self.ids_NL[own], self.length_N[own]
        position_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        mask_BL = (position_L < length_B[:, None]).long()
        return {"input_ids": ids_BL.long(), "attention_mask": mask_BL}

    def take(self, own_N: Tensor) -> Part:
        """Return the texts selected by a bool mask, N."""
        own_N = own_N.to(self.ids_NL.device)
        return Part(*(getattr(self, key.name)[own_N] for key in fields(self)))


class Task(tokenization.TextTask):
    """Classify texts."""

    samples = "training texts"
    selection_metric = "accuracy"

    def __init__(
        self, config: Config, data: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        super().__init__(config, data, seed, device)
        self.name = Path(config.train_file).parent.name or Path(config.train_file).stem
        if config.val_file is not None and data.val_fraction:
            raise ValueError(
                f"data.val_fraction={data.val_fraction} has no use: task.val_file is the"
                " validation set; set one of the two to null"
            )
        self.has_validation = config.val_file is not None or bool(data.val_fraction)
        self.length = config.max_length
        self.classes, self.files = config.class_names, config.files
        if self.source == "synthetic":
            if self.has_validation:  # val_fraction of a few texts may be none
                self.files.setdefault("val", "val.csv")
            self.length = min(self.length, SYNTHETIC_LENGTH)
            self.classes = self.classes or sorted(synthetic_text.SENTENCES)
        elif not self.classes:
            self.ensure()
            self.classes = _labels(self.root / config.train_file, config)
        self.spec = InputSpec((self.length,), len(self.classes), outputs="text")
        self.counted: dict[str, str] = {}

    def write(self) -> None:
        made = self.data.synthetic
        for part, name in self.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            count = made.train if part == "train" else made.test
            _write_texts(path, part, count, self.config, self.classes)

    def ensure(self) -> None:
        missing = [name for name in self.files.values() if not (self.root / name).is_file()]
        if missing:
            raise ValueError(
                f"{self.name} is not under data.root={self.root}: put {' and '.join(missing)}"
                " there, or set data.source=synthetic"
            )

    def read(self) -> None:
        parts = {part: self._read(self.root / name) for part, name in self.files.items()}
        train, fraction = parts["train"], self.data.val_fraction
        if fraction and "val" not in parts:
            held_N = hold_out(train.label_N.cpu(), fraction, "texts validation")
            parts |= {"train": train.take(~held_N), "val": train.take(held_N)}
        for part, own in parts.items():
            count = Counter(own.label_N.tolist())
            named = ", ".join(f"{self.classes[n]} {count[n]:,}" for n in sorted(count)[:10])
            more = ", ..." if len(count) > 10 else ""
            self.counted[part] = f"{len(own):,} texts of {len(count)} classes ({named}{more})"
            if cut := int(own.cut_N.sum()):
                self.counted[part] += f", {cut:,} of them truncated to {self.length} tokens"
        self.parts = parts

    def _read(self, path: Path) -> Part:
        """Read and tokenize one file; raises ValueError for a label that is not a class."""
        texts, labels = zip(*read(path, self.config.text, self.config.label), strict=True)
        number = {name: n for n, name in enumerate(self.classes)}
        for row, label in enumerate(labels, 1):
            if label not in number:
                known = ", ".join(self.classes[:10])
                raise ValueError(
                    f"{path}, row {row}: the label {label!r} is not one of the {len(number)} that"
                    f" were trained on ({known}{', ...' if len(number) > 10 else ''})"
                )
        ids_NL = torch.full((len(texts), self.length), self.tokenizer.special["pad"]).int()
        length_N = torch.empty(len(texts), dtype=torch.int32)
        for row, ids in enumerate(self.tokenizer.encode_whole(texts, self.length + 1)):
            if len(ids) > self.length:  # keep the end token
                ids[self.length - 1] = ids[-1]
            length_N[row] = len(ids)
            ids_NL[row, : len(ids)] = torch.tensor(ids[: self.length])
        label_N = torch.tensor([number[label] for label in labels], dtype=torch.int32)
        cut_N, length_N = length_N > self.length, length_N.clamp(max=self.length)
        return Part(*(x.to(self.device) for x in (ids_NL, length_N, label_N, cut_N)))

    def inspect(self) -> dict[str, str]:
        return self.counted | self.tokenizer.line()

    @property
    def train_size(self) -> int:
        return len(self.parts["train"])

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        train = self.parts["train"]
        return Batch(train.inputs(index_B), train.label_N[index_B].long(), len(index_B))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy, and 100 times the number of correct predictions."""
        self.check_network(model)
        logits_BK = outputs(model, batch.inputs)[0].float()
        right = (logits_BK.detach().argmax(1) == batch.targets).sum()
        return F.cross_entropy(logits_BK, batch.targets), {"accuracy": 100 * right}

    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Measure accuracy in percent and mean loss on "val" or "test"."""
        self.check_network(model)
        part = self.parts[split]
        firsts = range(0, len(part), EVAL_BATCH)

        def count(i: int) -> Sequence[Tensor]:
            own = slice(firsts[i], firsts[i] + EVAL_BATCH)
            logits_BK = outputs(model, part.inputs(own))[0].float()
            label_B = part.label_N[own].long()
            right = (logits_BK.argmax(1) == label_B).sum()
            return right, F.cross_entropy(logits_BK, label_B, reduction="sum")

        counted_E2 = measure(model, count, len(firsts), 2, rank, world, self.device)
        right, loss = counted_E2.sum(0).tolist()
        return {"accuracy": 100 * right / len(part), "loss": loss / len(part)}


def _write_texts(path: Path, part: str, count: int, config: Config, classes: list[str]) -> None:
    """Write sentences about people; a label is the kind of fact that its sentence states."""
    rng, kinds = Random(f"texts {part}"), sorted(synthetic_text.SENTENCES)
    rows = []
    for n in range(count):
        (name,) = synthetic_text.draw_names(rng, 1)
        facts = synthetic_text.draw_life(rng, name, 1).facts
        text = synthetic_text.SENTENCES[kinds[n % len(classes) % len(kinds)]].format(**facts)
        rows.append({config.text: text, config.label: classes[n % len(classes)]})
    with path.open("w", encoding="utf-8", newline="") as file:
        if (separator := SEPARATORS.get(path.suffix.lower())) is None:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
            return
        table = csv.DictWriter(file, [config.text, config.label], delimiter=separator)
        table.writeheader()
        table.writerows(rows)
