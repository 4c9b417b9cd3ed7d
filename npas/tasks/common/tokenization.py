"""Tokenize texts and build the network's inputs: the base of the tasks on texts."""

import abc
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npas.models import _hub
from npas.tasks import base
from npas.tasks.common import synthetic_text
from npas.utils import rng
from npas.utils.progress import Bar

# The files of a tokenizer, and those of which at least one is needed.
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "vocab.txt", "spiece.model")
NEEDED = ("tokenizer.json", "vocab.txt", "spiece.model")
SPECIAL = ("cls", "sep", "pad", "mask")
CHUNK = 4096  # texts tokenized at once: enough for all cores, and little memory


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of `transformers`, with its name and its key in the config."""

    name: str
    inner: Any
    special: Mapping[str, int]  # ids of the tokens in SPECIAL
    key: str = "task.tokenizer"

    @property
    def size(self) -> int:
        return len(self.inner)

    def line(self) -> dict[str, str]:
        return {"tokenizer": f"{self.name}, {self.size:,} tokens"}

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Tokenize texts without truncation or special tokens.

        Each result has `ids` and `offsets`: a token's start and end in the text, in characters.
        """
        # If unset, tokenizers warns of every later fork. Results do not depend on it.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        backend = self.inner.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        found: list[Any] = []
        try:
            with Bar("tokenizing", len(texts)) as bar:
                for start in range(0, len(texts), CHUNK):
                    some = list(texts[start : start + CHUNK])
                    found += backend.encode_batch(some, add_special_tokens=False)
                    bar.advance(len(some))
        except Exception as error:  # the library raises no other class
            raise ValueError(f"{self.key}={self.name} cannot tokenize a text ({error})") from None
        return found


def load_tokenizer(name: str, download: bool = True, key: str = "task.tokenizer") -> Tokenizer:
    """Load the tokenizer in folder `name`, or of that name on the Hugging Face hub.

    Without `download` only the hub's local cache is used. `key` is its key in the config. Raises
    ValueError if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    folder = _hub.find_folder(key, name, FILES, NEEDED, download=download)
    needs = 'its folder needs a config.json with its type, as {"model_type": "bert"} or "albert"'
    with _hub.reading(f"{key}={name}", needs):
        inner = AutoTokenizer.from_pretrained(folder)
        special = {kind: getattr(inner, f"{kind}_token_id") for kind in SPECIAL}
        if not inner.is_fast or None in special.values():
            raise ValueError("it is not a fast tokenizer with [CLS], [SEP], [PAD] and [MASK]")
    return Tokenizer(name, inner, special, key)


def inputs(ids_BL: Tensor, second_B: Tensor, length_B: Tensor) -> dict[str, Tensor]:
    """Return the network's inputs for pairs of texts: ids, token types and the attention mask.

    The second text starts at `second_B`. The mask is Bx1x1xL, as attention needs it: with BxL,
    transformers synchronizes with the device to check whether it masks anything.
    """
    position_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    is_text_BL = position_L < length_B[:, None]
    return {
        "input_ids": ids_BL.long(),
        "token_type_ids": (is_text_BL & (position_L >= second_B[:, None])).long(),
        "attention_mask": is_text_BL[:, None, None],
    }


def held_out(count: int, fraction: float, purpose: str) -> set[int]:
    """Choose some of `count` documents to hold out, at least one; no seed changes the choice."""
    order = rng.permutation(rng.derive_key(0, purpose), count, torch.device("cpu"))
    return set(order[: max(1, round(fraction * count))].tolist())


class TextTask(base.Task):
    """The base of tasks on texts: tokenizes with `task.tokenizer`, or the synthetic texts' own."""

    tokenizer: Tokenizer

    def read(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            if self.source == "synthetic":
                self.root = Path(folder)
                self.write()
                tokenizer = load_tokenizer(str(synthetic_text.write_tokenizer(self.root)))
                self.tokenizer = replace(tokenizer, name="synthetic")
            else:
                self.ensure()
                self.tokenizer = load_tokenizer(self.config.tokenizer, self.data.download)
            return self.load()

    @abc.abstractmethod
    def write(self) -> None:
        """Write the synthetic dataset under `root`."""

    @abc.abstractmethod
    def ensure(self) -> None:
        """Check that the dataset's files exist; raises ValueError if not."""

    @abc.abstractmethod
    def load(self) -> dict[str, Any]:
        """Return the parts read from the files under `root`; raises ValueError if malformed."""

    def check_network(self, model: nn.Module) -> None:
        what = f"task.tokenizer={self.tokenizer.name} has {self.tokenizer.size:,} tokens"
        base.check_vocabulary(model, self.tokenizer.size, what)
