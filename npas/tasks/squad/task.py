"""Extractive question answering: SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018).

Windows, n-best answers and the threshold for no answer are as in BERT (Devlin et al. 2019); the
metrics are the official ones, in percent. "test" is the dev set, as in papers. 2.0 reports `f1` and
`em` with threshold 0, and `best_f1` and `best_em` with the one that is best on the dev set itself,
as in published figures. With `task.train_files` and `task.test_file`, training skips paragraphs
that are in the test file, compared by their letters and digits.
"""

import json
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks.base import Batch, Metrics
from npas.tasks.common import checksums, download, synthetic_text, tokenization
from npas.tasks.common.measure import fill, measuring
from npas.tasks.squad import answers, reader
from npas.utils import files, rng
from npas.utils.checks import Ranged

log = logging.getLogger(__name__)

URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
# As listed by TensorFlow Datasets and Hugging Face Datasets; the authors publish no checksums.
SHA256 = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "train-v2.0.json": "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}
EVAL_BATCH = 32  # windows; small enough that each of many ranks gets some batches
SPLIT_SEED = 0  # held-out articles are the same for every run
SPECIAL = 3  # special tokens of a window
SYNTHETIC_LENGTHS = {"max_length": 64, "stride": 16, "max_query": 16}  # at most


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of SQuAD; lengths are in tokens.

    `tokenizer` is a folder, or a name on the Hugging Face hub. `train_questions` limits training to
    a random subset of as many questions, the same for every seed; null: all.
    """

    family: str = "squad"
    version: str = "1.1"
    max_length: Annotated[int, "[1, 100000]"] = 384  # of a window
    stride: Annotated[int, "[1, inf)"] = 128  # between the windows of a paragraph
    max_query: Annotated[int, "[1, inf)"] = 64  # longer questions are truncated
    max_answer: Annotated[int, "[1, inf)"] = 30
    n_best: Annotated[int, "[1, inf)"] = 20
    tokenizer: str = "bert-large-uncased"
    train_files: list[str] = field(default_factory=list)
    test_file: str | None = None
    train_questions: Annotated[int | None, "[1, inf)"] = None

    def __post_init__(self) -> None:
        if self.version not in ("1.1", "2.0"):
            raise ValueError(f"task.version={self.version}: must be 1.1 or 2.0")
        super().__post_init__()
        files = [*self.train_files, *([] if self.test_file is None else [self.test_file])]
        if bool(self.train_files) != (self.test_file is not None):
            raise ValueError("task.train_files and task.test_file go together")
        if "" in files or len({os.path.normpath(name) for name in files}) < len(files):
            raise ValueError("task.train_files and task.test_file must be different files")
        room = self.max_length - self.max_query - SPECIAL
        if room < 1:
            raise ValueError(f"task.max_length={self.max_length} leaves no room for a paragraph")
        if self.stride > room:
            raise ValueError(f"task.stride={self.stride} skips tokens: set it to at most {room}")


@dataclass(frozen=True)
class Part:
    """One split: its questions, their N windows on the CPU, and int32 tensors on the device."""

    questions: list[reader.Question]
    features: reader.Features
    ids_NL: Tensor
    second_N: Tensor
    length_N: Tensor
    start_N: Tensor
    end_N: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def inputs(self, own: Tensor | slice) -> dict[str, Tensor]:
        return tokenization.inputs(self.ids_NL[own], self.second_N[own], self.length_N[own])


class Task(tokenization.TextTask):
    """Predict the first and the last token of an answer in a paragraph."""

    samples = "training windows"
    selection_metric = "f1"

    def prepare(self) -> None:
        config = self.config
        self.name = f"squad{config.version}"
        limits = SYNTHETIC_LENGTHS.items()
        self.lengths = reader.Lengths(*(self.at_most(n, getattr(config, key)) for key, n in limits))
        self.spec = InputSpec((self.lengths.window,), 2, outputs="span")
        names = [f"{part}-v{config.version}.json" for part in ("train", "dev")]
        known: dict[str, str] = {} if self.source == "synthetic" else SHA256
        if config.test_file is not None and self.source != "synthetic":
            self.name = Path(config.test_file).stem
            names, known = [*config.train_files, config.test_file], {}
        self.sums = {name: known.get(name) for name in names}  # the last one is the test file
        self.left_out = 0  # training paragraphs that are in the test file
        self.answered: dict[str, list[answers.Answers]] = {}  # of the last `evaluate`, by split

    def write(self) -> None:
        made = self.data.synthetic
        synthetic_text.write_squad(self.root, self.config.version, made.train, made.test)

    def ensure(self) -> None:
        missing = [name for name in self.sums if not (self.root / name).is_file()]
        own = self.config.test_file is not None
        if missing and (own or not self.data.download):
            raise self.missing(" and ".join(missing), downloads=not own)
        for name in missing:
            download.fetch(URL + name, self.root / name, str(self.sums[name]))

    def load(self) -> dict[str, Part]:
        remedy = "move it away, and data.download=true fetches the published one"
        for name, known in self.sums.items():
            path, expected = self.root / name, known and f"sha256 {known}"
            self.compared.add(name, checksums.sha256(path), expected, path=path, remedy=remedy)
        *read, test = (reader.read(self.root / name, self.config.version) for name in self.sums)
        train = self._to_train_on(read, test)
        parts = {"train": train, "test": test}
        if fraction := self.data.val_fraction:
            articles = sorted({question.article for question in train})
            drawn = tokenization.held_out(len(articles), fraction, "squad validation")
            held = {articles[i] for i in drawn}
            if len(held) == len(articles):
                raise ValueError("data.val_fraction holds out all articles: set it to 0")
            parts["train"] = [question for question in train if question.article not in held]
            parts["val"] = [question for question in train if question.article in held]
        return {name: self._part(name, questions) for name, questions in parts.items()}

    def _to_train_on(
        self, read: list[list[reader.Question]], test: list[reader.Question]
    ) -> list[reader.Question]:
        found: list[reader.Question] = []
        for questions in read:
            first = found[-1].article + 1 if found else 0
            found += [replace(q, article=first + q.article) for q in questions]
        if self.config.test_file is not None:
            tested = {reader.content(text) for text in {q.context for q in test}}
            own = {text for text in {q.context for q in found} if reader.content(text) in tested}
            self.left_out = len(own)
            found = [question for question in found if question.context not in own]
        count = self.config.train_questions
        if count is not None and count < len(found):
            key = rng.derive_key(SPLIT_SEED, "squad questions")
            order = rng.permutation(key, len(found), torch.device("cpu"))[:count]
            found = [found[i] for i in order.sort().values.tolist()]
        return found

    def _part(self, name: str, questions: list[reader.Question]) -> Part:
        features = reader.cut(questions, self.tokenizer, self.lengths, training=name == "train")
        if features.left_out:
            log.warning(
                "%s: %d of %d training questions are skipped: their answers are not found",
                *(self.name, features.left_out, len(questions)),
            )
        names = ("ids_NL", "second_N", "length_N", "start_N", "end_N")
        arrays = [torch.from_numpy(getattr(features, key)).to(self.device) for key in names]
        return Part(questions, features, *arrays)

    def inspect(self) -> dict[str, str]:
        found = self.compared.lines()
        for name, part in self.parts.items():
            answerable = sum(bool(question.answers) for question in part.questions)
            found[name] = (
                f"{len(part.questions):,} questions ({answerable:,} with an answer,"
                f" {part.features.left_out:,} skipped) on"
                f" {len({question.context for question in part.questions}):,} paragraphs of"
                f" {len({question.article for question in part.questions}):,} articles, in"
                f" {len(part.features):,} windows of {self.lengths.window} tokens"
            )
        if self.left_out:
            found["train"] += f"; {self.left_out:,} paragraphs of the test set are skipped"
        return found | self.tokenizer.line()

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        train = self.parts["train"]
        targets = {"start": train.start_N[index_B].long(), "end": train.end_N[index_B].long()}
        return Batch(train.inputs(index_B), targets, len(index_B))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy of starts and ends, and 100 times the exact matches."""
        logits, targets = model(**batch.inputs), batch.targets
        start_BL, end_BL = logits.start_logits.float(), logits.end_logits.float()
        loss = F.cross_entropy(start_BL, targets["start"]) + F.cross_entropy(end_BL, targets["end"])
        right_B = start_BL.detach().argmax(1) == targets["start"]
        right_B &= end_BL.detach().argmax(1) == targets["end"]
        return loss / 2, {"exact": 100 * right_B.sum()}

    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        part, config = self.parts[split], self.config
        count = len(part)

        def answer(own: slice) -> tuple[slice, Tensor]:
            logits = model(**part.inputs(own))
            return own, torch.stack((logits.start_logits, logits.end_logits), 1).float()

        cuts = [slice(i, min(i + EVAL_BATCH, count)) for i in range(0, count, EVAL_BATCH)]
        logits_N2L = torch.zeros(count, 2, self.lengths.window, device=self.device)
        with measuring(model):
            logits_N2L = fill(logits_N2L, cuts[rank::world], world, answer)
        start_NL, end_NL = logits_N2L.transpose(0, 1).cpu().numpy()
        contexts = [question.context for question in part.questions]
        how = {"n_best": config.n_best, "max_answer": config.max_answer}
        found = list(answers.decode(part.features, contexts, start_NL, end_NL, **how))
        self.answered[split] = found
        texts, doubts = zip(*((own.text, own.doubt) for own in found), strict=True)
        golds = [question.answers for question in part.questions]
        return answers.summarize(texts, doubts, golds, config.version)

    def write_predictions(self, split: str, folder: Path) -> list[Path]:
        """Write predictions.json and, for 2.0, null_odds.json and answers.json; return the paths.

        By question id: the answer, empty if no answer scores higher; by how much it does; and the
        best answer in any case. For "val" the names are predictions-val.json, ...
        """
        found = self.answered[split]
        ids = [question.id for question in self.parts[split].questions]
        always = dict(zip(ids, (own.text for own in found), strict=True))
        named: dict[str, dict[str, Any]] = {"predictions": always}
        if self.config.version != "1.1":
            doubts = dict(zip(ids, (own.doubt for own in found), strict=True))
            given = {name: text if doubts[name] <= 0 else "" for name, text in always.items()}
            named = {"predictions": given, "null_odds": doubts, "answers": always}
        ending = "" if split == "test" else f"-{split}"
        paths = [folder / f"{name}{ending}.json" for name in named]
        folder.mkdir(exist_ok=True)
        for path, content in zip(paths, named.values(), strict=True):
            files.write_whole(path, json.dumps(content, indent=4) + "\n")
        return paths
