"""Answer questions by pointing into a paragraph: SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018).

The official JSON files lie under `data.root` (`train-v1.1.json`, `dev-v1.1.json`, and so for 2.0);
`data.download=true` fetches them. Other files than the published are refused unless
`data.verify=warn`. Windows, n-best answers and the threshold for having none are
BERT's (Devlin et al. 2019); the scores are the official ones, in percent. What is measured as
"test" is the dev set, as in every paper: the test set's answers are not public. `data.val_fraction`
of the training articles is held out to choose a checkpoint by; with 0 all are trained on and the
last weights count.

1.1 reports `f1` and `em`. For 2.0 these are what the network says by itself, with threshold 0;
`best_f1` and `best_em` are with the threshold that is best on the dev set itself, as BERT's and
ALBERT's published figures are.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks import base
from npas.tasks.base import Batch, over_ranks
from npas.tasks.common import checksums, download, files, synthetic_text, tokenization
from npas.tasks.squad import decode, metrics, reader, windows
from npas.utils import rng
from npas.utils.checks import at_least, at_most

if TYPE_CHECKING:
    from npas.config import DataConfig

log = logging.getLogger(__name__)

URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
# As TensorFlow Datasets and Hugging Face Datasets both list them; the authors publish no sums.
SHA256 = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "train-v2.0.json": "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}
EVAL_BATCH = 32  # windows; small enough that many ranks have some of them each
# The articles held out are the same for every run: their seed is no key of the config.
SPLIT_SEED = 0
SPECIAL = 3  # tokens of a window besides question and paragraph
# A synthetic text is read in shorter windows.
SYNTHETIC_LENGTHS = {"max_length": 64, "stride": 16, "max_query": 16}


@dataclass
class Config:
    """The `task.*` keys of SQuAD: lengths are in tokens. ValueError for what cannot be.

    `tokenizer` is a folder, or a name on the Hugging Face hub.
    """

    family: str = "squad"
    version: str = "1.1"
    max_length: int = 384  # of a window
    stride: int = 128  # from one window of a paragraph to the next
    max_query: int = 64  # longer questions are cut off
    max_answer: int = 30
    n_best: int = 20
    tokenizer: str = "bert-large-uncased"

    def __post_init__(self) -> None:
        if self.version not in ("1.1", "2.0"):
            raise ValueError(f"task.version={self.version}: SQuAD comes as 1.1 and as 2.0")
        for key in ("stride", "max_query", "max_answer", "n_best"):
            at_least(f"task.{key}", getattr(self, key), 1)
        at_most("task.max_length", self.max_length, 100_000)
        room = self.max_length - self.max_query - SPECIAL
        if room < 1:
            raise ValueError(
                f"task.max_length={self.max_length} leaves no room for a paragraph beside"
                f" task.max_query={self.max_query} and {SPECIAL} special tokens: make it longer"
            )
        if self.stride > room:
            raise ValueError(
                f"task.stride={self.stride} skips words: windows show at least {room} tokens of a"
                " paragraph; set it to at most that"
            )


@dataclass(frozen=True)
class Part:
    """One part: its questions, its windows on the CPU and, N x L and N each, on the device."""

    questions: list[reader.Question]
    features: windows.Features
    ids_NL: Tensor  # int32, as the others
    second_N: Tensor
    length_N: Tensor
    start_N: Tensor
    end_N: Tensor

    def inputs(self, index_B: Tensor | slice) -> dict[str, Tensor]:
        """Return what a network reads of these windows."""
        return tokenization.inputs(
            self.ids_NL[index_B], self.second_N[index_B], self.length_N[index_B]
        )


class Task(base.Task):
    """Point to where in a paragraph the answer to a question starts and ends."""

    samples = "training windows"

    compared: checksums.Comparison
    selection_metric = "f1"

    def __init__(
        self, config: Config, data: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        self.config = config
        self.data = data
        self.seed = seed
        self.device = device
        self.source = data.source
        self.name = f"squad{config.version}"
        self.root = Path(data.root)
        self.val_fraction = data.val_fraction or 0.0
        self.has_validation = self.val_fraction > 0
        lengths = {key: getattr(config, key) for key in SYNTHETIC_LENGTHS}
        if self.source == "synthetic":
            lengths = {key: min(lengths[key], most) for key, most in SYNTHETIC_LENGTHS.items()}
        self.lengths = windows.Lengths(
            lengths["max_length"], lengths["stride"], lengths["max_query"]
        )
        self.spec = InputSpec((self.lengths.window,), 2, outputs="span")
        self.sums = SHA256
        self.compared = checksums.Comparison(data.verify)
        self.parts: dict[str, Part] = {}
        self.files: dict[str, str] = {}  # what each was, for `inspect`
        self.answered: dict[str, list[decode.Answers]] = {}  # by split, the last time

    def setup(self) -> None:
        """Read the files and cut them into windows, which come to rest on the device."""
        if self.parts:
            return
        if self.source == "synthetic":
            with tempfile.TemporaryDirectory() as folder:
                self.root, self.sums = Path(folder), {}
                made = self.data.synthetic
                synthetic_text.write_squad(self.root, self.config.version, made.train, made.test)
                self._read(tokenization.load_synthetic(self.root))
        else:
            self._ensure()
            self._read(tokenization.load_tokenizer(self.config.tokenizer, self.data.download))

    def _names(self) -> list[str]:
        return [f"{part}-v{self.config.version}.json" for part in ("train", "dev")]

    def _ensure(self) -> None:
        """Download what is missing. ValueError says what to put where."""

        def missing() -> list[str]:
            return [name for name in self._names() if not (self.root / name).is_file()]

        if not missing():
            return
        if not self.data.download:
            raise ValueError(
                f"{self.name} is not under data.root={self.root}: put {' and '.join(missing())}"
                " there, or set data.download=true"
            )
        with files.locked(self.root / f".{self.name}.lock"):
            for name in missing():
                path = self.root / name
                new = self.root / f".{name}.new"  # nobody reads it before its sum is right
                download.download(URL + name, new)
                if (found := checksums.sha256(new)) != f"sha256 {self.sums[name]}":
                    new.unlink()
                    raise ValueError(
                        f"{URL}{name} is not the published file ({found}, not sha256"
                        f" {self.sums[name]}): fetch it elsewhere and put it at {path}"
                    )
                new.replace(path)

    def _read(self, tokenizer: tokenization.Tokenizer) -> None:
        for name in self._names():
            path = self.root / name
            found = checksums.sha256(path)
            expected = f"sha256 {self.sums[name]}" if name in self.sums else None
            self.files[name] = f"{path.stat().st_size:,} bytes, {found}, {self._whose(name, found)}"
            self.compared.add(
                name,
                found,
                expected,
                path=path,
                remedy="move it away, and data.download=true fetches the published one",
            )
        train, test = (reader.read(self.root / name, self.config.version) for name in self._names())
        self.tokenizer = tokenizer
        parts = {"train": train, "test": test}
        if self.has_validation:
            held = held_out(max(question.article for question in train) + 1, self.val_fraction)
            parts["train"] = [question for question in train if question.article not in held]
            parts["val"] = [question for question in train if question.article in held]
        self.parts = {name: self._part(name, questions) for name, questions in parts.items()}

    def _part(self, name: str, questions: list[reader.Question]) -> Part:
        features = windows.cut(questions, self.tokenizer, self.lengths, training=name == "train")
        if features.left_out:
            log.warning(
                "%s: %d of %d training questions are left out, whose answer is not where their file"
                " says",
                self.name,
                features.left_out,
                len(questions),
            )
        names = ("ids_NL", "second_N", "length_N", "start_N", "end_N")
        arrays = [torch.from_numpy(getattr(features, key)).to(self.device) for key in names]
        return Part(questions, features, *arrays)

    def _whose(self, name: str, found: str) -> str:
        if name not in self.sums:
            return "synthetic"
        same = found == f"sha256 {self.sums[name]}"
        return "as published" if same else f"not the published {self.sums[name]}"

    def inspect(self) -> dict[str, str]:
        """Return what the files are, whether as published, and what they hold."""
        found = dict(self.files)
        for name, part in self.parts.items():
            answerable = sum(bool(question.answers) for question in part.questions)
            found[name] = (
                f"{len(part.questions):,} questions ({answerable:,} with an answer,"
                f" {part.features.left_out:,} left out) on"
                f" {len({question.context for question in part.questions}):,} paragraphs of"
                f" {len({question.article for question in part.questions}):,} articles, in"
                f" {len(part.features):,} windows of {self.lengths.window} tokens"
            )
        found["tokenizer"] = f"{self.tokenizer.name}, {self.tokenizer.size:,} words"
        return found

    @property
    def train_size(self) -> int:
        return len(self.parts["train"].features)

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        train = self.parts["train"]
        targets = {"start": train.start_N[index_B].long(), "end": train.end_N[index_B].long()}
        return Batch(train.inputs(index_B), targets, len(index_B))

    def check_network(self, model: nn.Module) -> None:
        """ValueError if the network does not know all words of the tokenizer."""
        tokenization.check_network(model, self.tokenizer)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy of starts and ends, and how many are both right, in %."""
        self.check_network(model)
        logits = model(**batch.inputs)
        right_B = torch.ones(batch.size, dtype=torch.bool, device=logits.start_logits.device)
        losses = []
        for name, target_B in batch.targets.items():
            logits_BL = logits[f"{name}_logits"].float()
            losses.append(F.cross_entropy(logits_BL, target_B))
            right_B &= logits_BL.detach().argmax(1) == target_B
        return sum(losses) / 2, {"exact": 100 * right_B.sum()}  # type: ignore[return-value]

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, rank: int = 0, world: int = 1
    ) -> dict[str, float]:
        """Measure on "val" or "test" (the dev set), every question once; see the module's top."""
        self.check_network(model)
        part = self.parts[split]
        was_training = model.training
        model.eval()
        count = len(part.features)
        # The other ranks' windows stay 0 here.
        logits_2NL = torch.zeros(2, count, self.lengths.window, device=self.device)
        cuts = [slice(i, min(i + EVAL_BATCH, count)) for i in range(0, count, EVAL_BATCH)]
        for own in cuts[rank::world]:
            answered = model(**part.inputs(own))
            logits_2NL[0, own] = answered.start_logits.float()
            logits_2NL[1, own] = answered.end_logits.float()
        model.train(was_training)
        start_NL, end_NL = over_ranks(logits_2NL, world).cpu().numpy()
        found = list(
            decode.decode(
                part.features,
                [question.context for question in part.questions],
                start_NL,
                end_NL,
                n_best=self.config.n_best,
                max_answer=self.config.max_answer,
            )
        )
        self.answered[split] = found
        return metrics.summarize(
            [answers.text for answers in found],
            [answers.doubt for answers in found],
            [question.answers for question in part.questions],
            self.config.version,
        )

    def write_predictions(self, split: str, folder: Path) -> list[Path]:
        """Write predictions.json and, of 2.0, null_odds.json and answers.json; return the files.

        By question: the answer, empty where having none scores better; by how much it does; and
        the answer whatever that is. Of held-out questions they are named predictions-val.json, ...
        """
        ids = [question.id for question in self.parts[split].questions]
        found = self.answered[split]
        always = {ids[answers.question]: answers.text for answers in found}
        doubts = {ids[answers.question]: answers.doubt for answers in found}
        named: dict[str, dict[str, Any]] = {"predictions": always}
        if self.config.version != "1.1":
            given = {name: text if doubts[name] <= 0 else "" for name, text in always.items()}
            named = {"predictions": given, "null_odds": doubts, "answers": always}
        paths = []
        for name, content in named.items():
            path = folder / f"{name}{'' if split == 'test' else f'-{split}'}.json"
            files.write_whole(path, json.dumps(content, indent=4) + "\n")
            paths.append(path)
        return paths


def held_out(articles: int, fraction: float) -> set[int]:
    """Return the articles held out, the same for every seed. ValueError if there is only one."""
    if articles < 2:
        raise ValueError(
            f"data.val_fraction={fraction} holds out articles, and there is only one: set it to 0"
        )
    key = rng.derive_key(SPLIT_SEED, "squad validation")
    order = rng.permutation(key, articles, torch.device("cpu")).tolist()
    return set(order[: min(articles - 1, max(1, round(fraction * articles)))])
