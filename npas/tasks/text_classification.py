"""Classify your own texts: rows of CSV, TSV or JSON-lines files with a text and a label.

The dataset's name in results is the training file's folder, or else its name. Labels are strings or
integers; a run stores them as `task.class_names`.
"""

from __future__ import annotations

import csv
import functools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
from torch import Tensor

from npas.config import DataConfig
from npas.models import InputSpec
from npas.tasks.base import Batch
from npas.tasks.classification import Classification, hold_out
from npas.tasks.common import synthetic_text, tokenization
from npas.utils import files
from npas.utils.checks import Ranged

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".jsonl", ".json")
SYNTHETIC_LENGTH = 64
LONGEST = 2**31 - 1  # characters of a field


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of own texts: files under `data.root`, and their columns.

    `class_names` are the labels, in the order of the network's classes; empty: those of
    `train_file`, sorted. `tokenizer` is a folder, or a name on the Hugging Face hub.
    """

    family: str = "text_classification"
    train_file: str = "texts/train.csv"
    test_file: str = "texts/test.csv"
    val_file: str | None = None
    text: str = "text"  # column names
    label: str = "label"
    class_names: list[str] = field(default_factory=list)
    max_length: Annotated[int, "[3, 100000]"] = 128  # tokens per text
    tokenizer: str = "bert-base-uncased"

    def __post_init__(self) -> None:
        super().__post_init__()
        for part, name in self.files.items():
            if Path(name).suffix.lower() not in ENDINGS:
                raise ValueError(f"task.{part}_file={name} must end in one of {', '.join(ENDINGS)}")
        if len({os.path.normpath(name) for name in self.files.values()}) < len(self.files):
            raise ValueError("task.train_file, test_file and val_file must be different files")
        if self.text == self.label:
            raise ValueError(f"task.text and task.label are both {self.text}: name two columns")
        if len(self.class_names) == 1 or len(set(self.class_names)) < len(self.class_names):
            raise ValueError("task.class_names must be at least two different labels; [] for all")

    @property
    def files(self) -> dict[str, str]:
        found = {"train": self.train_file, "test": self.test_file}
        return found if self.val_file is None else found | {"val": self.val_file}


def settle(config: Config, data: DataConfig) -> Config:
    """Return the config with the labels read from the training file, if it exists."""
    train = Path(data.root, config.train_file)
    if data.source != "real" or config.class_names or not train.is_file():
        return config
    version = train.stat().st_mtime_ns
    return replace(config, class_names=list(_labels(train, config.text, config.label, version)))


@functools.lru_cache(maxsize=8)  # for the jobs of a sweep
def _labels(path: Path, text: str, label: str, version: int = 0) -> tuple[str, ...]:
    """Return a file's labels, sorted: as numbers if all are integers, else alphabetically."""
    found = {row[1] for row in read(path, text, label)}
    if len(found) < 2:
        raise ValueError(f"{path} has only the label {min(found)!r}: a task needs two classes")
    whole = all(name.removeprefix("-").isdecimal() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name) if whole else (0, name)))


def read(path: Path, text: str, label: str) -> Iterator[tuple[str, str]]:
    """Yield each row's text and label; raises ValueError that names the file and the row."""
    number, separator = 0, SEPARATORS.get(path.suffix.lower())
    csv.field_size_limit(LONGEST)  # by default 131,072
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: Iterable[Any] = (json.loads(line) for line in file if line.strip())
            if separator:
                rows = csv.DictReader(file, delimiter=separator, strict=True)
                names = Counter(rows.fieldnames or ())
                if max(names[text], names[label]) > 1:
                    raise ValueError(f"two columns are called {text} or {label}: rename one")
            for number, row in enumerate(rows, 1):  # noqa: B007 (for messages)
                if not isinstance(row, dict) or not {text, label} <= row.keys() or None in row:
                    raise ValueError(
                        f"it needs the columns {text} and {label} (task.text and task.label), and"
                        " no more than the first row: quote a text with separators"
                    )
                found, name = row[text], row[label]
                if isinstance(name, (bool, int)):  # in JSON
                    name = str(name).lower()
                if not isinstance(found, str) or not isinstance(name, str) or not name.strip():
                    raise ValueError("the text or the label is missing, or is not a string")
                yield found, name.strip()
        if not number:
            raise ValueError("it has no rows")
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}, row {max(1, number)}: {files.reason(error)}") from None


@dataclass(frozen=True)
class Part:
    """The texts of one split, N, padded to L tokens, on the device, int32."""

    ids_NL: Tensor
    length_N: Tensor  # not truncated
    label_N: Tensor

    def __len__(self) -> int:
        return len(self.label_N)

    def take(self, own_N: Tensor) -> Part:
        return Part(*(value_N[own_N.to(value_N.device)] for value_N in vars(self).values()))


class Task(tokenization.TextTask, Classification):
    """Classify texts into the classes of a settled config."""

    samples = "training texts"
    eval_batch = 32

    def prepare(self) -> None:
        config, fraction = self.config, self.data.val_fraction
        self.name = Path(config.train_file).parent.name or Path(config.train_file).stem
        if config.val_file is not None and fraction:
            raise ValueError("data.val_fraction and task.val_file: set one of the two to null")
        self.has_validation |= config.val_file is not None
        self.length = self.at_most(SYNTHETIC_LENGTH, config.max_length)
        self.classes, self.files = config.class_names, config.files
        if self.source == "synthetic":
            self.files = {"train": "train.csv", "test": "test.csv"}
            if self.has_validation:  # val_fraction of a few texts may be none
                self.files["val"] = "val.csv"
            self.classes = self.classes or sorted(synthetic_text.SENTENCES)
        elif not self.classes:  # not settled, since the file is missing
            self.ensure()
        self.spec = InputSpec((self.length,), len(self.classes), outputs="text")

    def write(self) -> None:
        for part, name in self.files.items():
            count = getattr(self.data.synthetic, "train" if part == "train" else "test")
            _write_texts(self.root / name, part, count, self.config, self.classes)

    def ensure(self) -> None:
        missing = [name for name in self.files.values() if not (self.root / name).is_file()]
        if missing:
            raise self.missing(" and ".join(missing))

    def load(self) -> dict[str, Part]:
        parts = {part: self._read(self.root / name) for part, name in self.files.items()}
        train, fraction = parts["train"], self.data.val_fraction
        if fraction and "val" not in parts:
            held_N = hold_out(train.label_N.cpu(), fraction, "texts validation")
            parts |= {"train": train.take(~held_N), "val": train.take(held_N)}
        return parts

    def _read(self, path: Path) -> Part:
        texts, labels = zip(*read(path, self.config.text, self.config.label), strict=True)
        if unknown := set(labels) - set(self.classes):
            raise ValueError(
                f"{path}: the label {min(unknown)!r} is not one of the {len(self.classes)} that"
                f" were trained on ({', '.join(self.classes[:10])})"
            )
        special = self.tokenizer.special
        ids_NL = torch.full((len(texts), self.length), special["pad"]).int()
        length_N = torch.empty(len(texts), dtype=torch.int32)
        for row, encoded in enumerate(self.tokenizer.encode(texts)):
            ids = [special["cls"], *encoded.ids[: self.length - 2], special["sep"]]
            length_N[row] = len(encoded.ids) + 2
            ids_NL[row, : len(ids)] = torch.tensor(ids)
        label_N = torch.tensor([self.classes.index(label) for label in labels], dtype=torch.int32)
        return Part(*(x.to(self.device) for x in (ids_NL, length_N, label_N)))

    def inspect(self) -> dict[str, str]:
        found = {}
        for part, own in self.parts.items():
            counts = Counter(self.classes[label] for label in own.label_N.tolist())
            named = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(10))
            cut = int((own.length_N > self.length).sum())
            found[part] = (
                f"{len(own):,} texts of {len(counts)} classes ({named}), {cut:,} of them truncated"
                f" to {self.length} tokens"
            )
        return found | self.tokenizer.line()

    @property
    def class_names(self) -> list[str]:
        return list(self.classes)

    def show_input(self, part: Part, index: int) -> tuple[str, None]:
        ids = part.ids_NL[index][: int(part.length_N[index])].tolist()
        return self.tokenizer.inner.decode(ids, skip_special_tokens=True), None

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        return self.test_batch(self.parts["train"], index_B)

    def test_batch(self, part: Part, own: Tensor | slice) -> Batch:
        ids_BL, length_B, label_B = part.ids_NL[own], part.length_N[own], part.label_N[own]
        position_L = torch.arange(self.length, device=self.device)
        mask_BL = (position_L < length_B[:, None]).long()
        inputs = {"input_ids": ids_BL.long(), "attention_mask": mask_BL}
        return Batch(inputs, label_B.long(), len(label_B))


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
        table = csv.DictWriter(file, [config.text, config.label])
        table.writeheader()
        table.writerows(rows)
