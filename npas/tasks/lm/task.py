"""Language modelling on Shakespeare, on FineWeb as in Parameter Golf, and on any text.

An epoch is `task.steps` batches, functions of seed and step. Rows of shakespeare, bins and text
start at random positions; those of fineweb are consecutive, in the contest's order: a step takes
one span of tokens, split over ranks. "test" is all of the source's val split, in rows that do not
overlap; each token is predicted once, from those before it in its row. For fineweb the last,
incomplete row is skipped as in the contest. "val" is the last `data.val_fraction` of "train".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.tasks import base
from npas.tasks.base import Batch, Metrics, Picture, Shown
from npas.tasks.common.checksums import sha256
from npas.tasks.common.download import fetch
from npas.tasks.common.measure import measure, measuring
from npas.tasks.lm import reader
from npas.tasks.lm.reader import Stream
from npas.utils import rng
from npas.utils.checks import Ranged
from npas.utils.files import listed

SHAKESPEARE = Path("tinyshakespeare/input.txt")
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_FRACTION = 0.9  # the first part of a text, as in nanoGPT
EVAL_TOKENS = 16_384  # per evaluation batch
NOT_SCORED = -100  # ignored by cross-entropy
PROMPT, CONTINUED = 64, 256  # tokens of an example


@dataclass
class Config(Ranged, section="task."):
    """The `task.*` keys of language models.

    `folder` and `tokenizer`, a SentencePiece model, are below `data.root`.
    """

    family: str = "lm"
    dataset: Literal["shakespeare", "fineweb", "bins", "text"] = "shakespeare"
    length: Annotated[int, "[1, 1000000]"] = 64  # tokens per row
    steps: Annotated[int, "[1, 100000000]"] = 2000  # per epoch
    vocab_size: Annotated[int, "[1, 65536]"] = 65
    folder: str = "text"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "shakespeare" and (self.folder, self.tokenizer) != ("text", None):
            raise ValueError(
                "task.folder and task.tokenizer are not for shakespeare: set task=text"
            )


class Task(base.Task):
    """Predict each token of a row from those before it."""

    selection_metric = "loss"
    lower_is_better = True
    samples = "tokens"

    def prepare(self) -> None:
        config = self.config
        self.device = torch.device("cpu")  # batches stream from files or memory
        self.name = config.dataset
        self.spec = InputSpec((config.length,), config.vocab_size, outputs="token")
        self.vocabulary: reader.Vocabulary | None = None  # None: unknown

    def read(self) -> dict[str, Stream]:
        size, fraction = self.config.vocab_size, self.data.val_fraction
        streams = self._synthetic() if self.source == "synthetic" else self._open()
        if fraction:
            train = streams["train"]
            streams["train"], streams["val"] = train.cut(round(len(train) * (1 - fraction)))
        for part, stream in streams.items():
            if len(stream) <= (length := self.config.length):
                raise ValueError(
                    f"the {part} part of {self.name} has {len(stream):,} tokens, no more than"
                    f" task.length={length}: use a longer text, or a shorter length"
                )
        found = size if self.vocabulary is None else len(self.vocabulary)
        if found != size:
            raise ValueError(f"{self.name} has {found} tokens: set task.vocab_size={found}")
        for part, stream in streams.items():
            if part != "train":  # which `collate` checks: it may be long
                self._check_token(stream.largest())
        return streams

    def _open(self) -> dict[str, Stream]:
        config, folder = self.config, self.root / self.config.folder
        if config.tokenizer is not None:
            self.vocabulary = reader.of_sentencepiece(self.root / config.tokenizer)
        if config.dataset == "bins":
            names = {"train": "train.bin", "test": "val.bin"}
            return {part: reader.read_bin(folder / name) for part, name in names.items()}
        if config.dataset == "fineweb":
            patterns = {"train": "fineweb_train_*.bin", "test": "fineweb_val_*.bin"}
            return {
                part: Stream([reader.read_shard(path) for path in listed(folder, pattern)])
                for part, pattern in patterns.items()
            }
        if config.dataset == "shakespeare":
            text = self._shakespeare()
            pieces = [character.encode() for character in sorted(set(text))]
        else:
            text = "\n".join(map(reader.read_text, listed(folder, "*.txt")))
            pieces = [*reader.BYTES]
        self.vocabulary = self.vocabulary or reader.of_pieces(pieces)
        tokens = np.array(self.vocabulary.encode(text), dtype=reader.TOKEN)
        train, test = Stream([tokens]).cut(int(len(tokens) * TRAIN_FRACTION))
        return {"train": train, "test": test}

    def _shakespeare(self) -> str:
        path, published = self.root / SHAKESPEARE, f"sha256 {SHAKESPEARE_SHA256}"
        if not path.exists() and self.data.download:
            fetch(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256)
        if not path.exists():
            raise self.missing(str(SHAKESPEARE), downloads=True)
        remedy = "delete it, and data.download=true fetches the published one"
        self.compared.add(SHAKESPEARE.name, sha256(path), published, path=path, remedy=remedy)
        return reader.read_text(path)

    def _synthetic(self) -> dict[str, Stream]:
        """Draw random walks over tokens, which can be learned."""
        made, size, streams = self.data.synthetic, self.config.vocab_size, {}
        self.vocabulary = reader.of_pieces([b"a"] * size)
        for part, rows in (("train", made.train), ("test", made.test)):
            index_N = torch.arange(rows * self.config.length + 1)
            steps_N = rng.integers(rng.derive_key(0, "text", part), index_N, 3)
            streams[part] = Stream([(steps_N.cumsum(0) % size).numpy().astype(reader.TOKEN)])
        return streams

    def inspect(self) -> dict[str, str]:
        for stream in self.parts.values():
            self._check_token(stream.largest())
        found = {part: f"{len(stream):,} tokens" for part, stream in self.parts.items()}
        return found | self.compared.lines()

    def steps_per_epoch(self, batch_size: int) -> int:
        if self.source == "synthetic":
            return max(1, self.data.synthetic.train // batch_size)
        return self.config.steps

    def sampler(
        self, epoch: int, batch_size: int, local: int, rank: int, world: int
    ) -> Callable[[int], Tensor]:
        """Return a function from a step to the positions where a rank's `local` rows start."""
        length, row_B = self.config.length, torch.arange(local)
        key, rows = rng.derive_key(self.seed, "rows"), self.train_size - length  # possible starts
        before = epoch * self.steps_per_epoch(batch_size)

        def choose(step: int) -> Tensor:
            at = before + step
            if self.config.dataset == "fineweb":
                first = at * (batch_size * length + world) + rank * (local * length + 1)
                return first + row_B * length
            drawn_B = rng.bits(key, at * batch_size + rank * local + row_B)
            return (drawn_B & (2**63 - 1)) % rows

        return choose

    def collate(self, index_B: Tensor, epoch: int, step: int) -> Batch:
        stream, count = self.parts["train"], self.config.length + 1
        rows_BL = torch.stack([stream.take(start, count) for start in index_B.tolist()])
        self._check_token(int(rows_BL.max()))
        return Batch(rows_BL[:, :-1], rows_BL[:, 1:], len(rows_BL))

    def _check_token(self, most: int) -> None:
        if most >= self.config.vocab_size:
            raise ValueError(f"{self.name} has token {most}, above task.vocab_size: raise that")

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BLV = model(batch.inputs)
        return F.cross_entropy(logits_BLV.flatten(0, 1).float(), batch.targets.flatten()), {}

    def evaluate(self, model: nn.Module, split: str, rank: int = 0, world: int = 1) -> Metrics:
        """Measure nats per token and, if the tokens' bytes are known, bits per byte."""
        stream, length = self.parts[split], self.config.length
        targets = len(stream) - 1
        if self.config.dataset == "fineweb":
            targets = targets // length * length
        per_batch = max(1, EVAL_TOKENS // length) * length
        cuts, known = range(0, targets, per_batch), self.vocabulary

        def count(i: int) -> tuple[Tensor | int, ...]:
            read = stream.take(cuts[i], min(per_batch, targets - cuts[i]) + 1)
            before, target = read[:-1], read[1:]
            missing = -len(target) % length  # padding of the last row
            rows_BL = F.pad(before, (0, missing)).view(-1, length)
            target_BL = F.pad(target, (0, missing), value=NOT_SCORED).view(-1, length)
            logits_BLV = model(rows_BL.to(device)).float()
            nats = F.cross_entropy(
                logits_BLV.flatten(0, 1),
                target_BL.flatten().to(device),
                ignore_index=NOT_SCORED,
                reduction="none",
            )
            size = 0 if known is None else int(known.bytes_of(target, before).sum())
            # Rounded, as in the committed results.
            return nats.double().sum().float(), len(target), size

        device = next(model.parameters(), torch.empty(0)).device
        sums_E3 = measure(model, count, len(cuts), 3, rank, world, device)
        nats, tokens, size = sums_E3.sum(0).tolist()
        metrics = {"loss": nats / tokens}
        return {**metrics, "bits_per_byte": nats / math.log(2) / size} if size else metrics

    def examples(self, model: nn.Module, split: str, count: int) -> list[Shown]:
        """Return prompts from a split and the network's continuations."""
        if self.vocabulary is None:
            raise ValueError(f"{self.name} cannot be shown as text: set task.tokenizer")
        stream, length = self.parts[split], self.config.length
        prompt, key = min(PROMPT, length), rng.derive_key(0, "continue")
        starts = [i * (len(stream) // count) for i in range(count)]
        tokens_BL = torch.stack([stream.take(start, prompt) for start in starts])
        with measuring(model) as device:
            tokens_BL = tokens_BL.to(device)
            for step in range(CONTINUED):
                logits_BV = model(tokens_BL[:, -length:])[:, -1].float()
                # The argmax of logits with Gumbel noise is a sample from their softmax.
                counter = torch.arange(logits_BV.numel()) + step * logits_BV.numel()
                uniform = rng.bits(key, counter).double() / 2.0**64 + 0.5
                noise_BV = -(-uniform.clamp(1e-12, 1 - 1e-12).log()).log().view_as(logits_BV)
                drawn_B = (logits_BV + noise_BV.to(logits_BV)).argmax(1)
                tokens_BL = torch.cat([tokens_BL, drawn_B[:, None]], 1)
        decode = self.vocabulary.decode
        return [
            Shown(decode(row[:prompt]), [Picture(None, decode(row[prompt:]))])
            for row in tokens_BL.tolist()
        ]
