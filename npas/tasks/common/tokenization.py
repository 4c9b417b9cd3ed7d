"""Cut texts into tokens, and give them to a network: what the tasks on texts have in common."""

from __future__ import annotations

import abc
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npas.models import _hub
from npas.tasks import base
from npas.tasks.common import files, synthetic_text
from npas.utils.progress import Bar

if TYPE_CHECKING:
    from npas.config import DataConfig

# What a tokenizer consists of, and of which one part will do.
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "vocab.txt", "spiece.model")
NEEDED = ("tokenizer.json", "vocab.txt", "spiece.model")
AT_ONCE = 10_000  # texts, from one look at the progress to the next
SPECIAL = ("cls", "sep", "pad", "mask")
AT_ONCE = 4096  # texts that are cut together: on all cores, and no more in memory


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of `transformers` by the key and the name that the config has for it."""

    name: str
    inner: Any
    special: Mapping[str, int]  # ids of the tokens that start ("cls"), part, pad and hide
    key: str = "task.tokenizer"

    @property
    def size(self) -> int:
        """Return the number of words, special ones included: ids are below."""
        return len(self.inner)

    def line(self) -> dict[str, str]:
        """Return a line on it for `inspect`."""
        return {"tokenizer": f"{self.name}, {self.size:,} words"}

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Cut texts into tokens, uncut and without special ones: each has `ids` and `offsets`.

        Offsets are where a token starts and ends in the text, in characters.
        """
        # Said, or every later fork is warned of; what it comes to does not depend on it.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        backend = self.inner.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        try:
            found: list[Any] = []
            with Bar("tokenizing", len(texts)) as bar:
                for start in range(0, len(texts), AT_ONCE):
                    some = list(texts[start : start + AT_ONCE])
                    found += backend.encode_batch(some, add_special_tokens=False)
                    bar.advance(len(some))
        except Exception as error:  # the library has no other class of its own
            raise ValueError(f"{self.key}={self.name} cannot cut a text ({error})") from None
        return found

    def encode_whole(self, texts: Sequence[str], most: int) -> Iterator[list[int]]:
        """Yield each text's ids, special ones included as this tokenizer has them: at most so many.

        ValueError for a text that it cannot cut.
        """
        how: Any = {"truncation": True, "max_length": most, "return_attention_mask": False}
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        for first in range(0, len(texts), AT_ONCE):
            try:
                found = self.inner(list(texts[first : first + AT_ONCE]), **how)["input_ids"]
            except Exception as error:  # the library has no other class of its own
                raise ValueError(f"{self.key}={self.name} cannot cut a text ({error})") from None
            yield from found


def load_tokenizer(name: str, download: bool = True, key: str = "task.tokenizer") -> Tokenizer:
    """Load the tokenizer in folder `name`, or of that name on the hub. ValueError, in one line.

    Without `download` the hub itself is not asked, only what its cache here holds. `key` is what
    the config calls it.
    """
    from transformers import AutoTokenizer

    folder = _hub.find_folder(key, name, FILES, NEEDED, download=download)
    try:
        with _hub.quietly():
            inner = AutoTokenizer.from_pretrained(folder)
        special = {kind: getattr(inner, f"{kind}_token_id") for kind in SPECIAL}
        if not inner.is_fast or None in special.values():
            raise ValueError("it is no fast one that has [CLS], [SEP], [PAD] and [MASK]")
    except Exception as error:  # whatever a broken file makes its readers say
        raise ValueError(
            f"{key}={name} cannot be read ({files.reason(error)}): its folder needs a config.json"
            ' that says what it is, as {"model_type": "bert"} or {"model_type": "albert"}'
        ) from error
    return Tokenizer(name, inner, special, key)


def load_synthetic(root: Path) -> Tokenizer:
    """Write the tokenizer of the synthetic world under `root`, and load it."""
    tokenizer = load_tokenizer(str(synthetic_text.write_tokenizer(root)))
    return replace(tokenizer, name="synthetic")


def inputs(ids_BL: Tensor, second_B: Tensor, length_B: Tensor) -> dict[str, Tensor]:
    """Return what a network reads: ids, which of the two texts, and what is no padding.

    The second text starts at `second_B`. The mask has the shape that attention asks for, Bx1x1xL:
    given BxL, transformers would wait for the device to see whether it hides anything.
    """
    place_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    is_text_BL = place_L < length_B[:, None]
    return {
        "input_ids": ids_BL.long(),
        "token_type_ids": (is_text_BL & (place_L >= second_B[:, None])).long(),
        "attention_mask": is_text_BL[:, None, None],
    }


class TextTask(base.Task):
    """Train on texts that a tokenizer cuts, `task.tokenizer` or of synthetic ones their own.

    What lies under `root` becomes `parts`.
    """

    tokenizer: Tokenizer

    def __init__(self, config: Any, data: DataConfig, seed: int, device: torch.device) -> None:
        self.config = config
        self.data = data
        self.seed = seed
        self.device = device
        self.source = data.source
        self.root = Path(data.root)
        self.parts: dict[str, Any] = {}

    def setup(self) -> None:
        """Read the files, whose samples come to rest on the device."""
        if self.parts:
            return
        with tempfile.TemporaryDirectory() as folder:
            if self.source == "synthetic":
                self.root = Path(folder)
                self.write()
                self.tokenizer = load_synthetic(self.root)
            else:
                self.ensure()
                self.tokenizer = load_tokenizer(self.config.tokenizer, self.data.download)
            self.read()

    @abc.abstractmethod
    def write(self) -> None:
        """Write the synthetic set under `root`."""

    @abc.abstractmethod
    def ensure(self) -> None:
        """Look for the files. ValueError, one line, if they are missing."""

    @abc.abstractmethod
    def read(self) -> None:
        """Read the files under `root` into `parts`. ValueError."""

    def check_network(self, model: nn.Module) -> None:
        """ValueError if the network does not know all words of the tokenizer."""
        config = getattr(getattr(model, "module", model), "config", None)
        known, size = getattr(config, "vocab_size", None), self.tokenizer.size
        if known is not None and known < size:
            raise ValueError(
                f"task.tokenizer={self.tokenizer.name} has {size:,} words, and the network knows"
                f" model.vocab_size={known}: set it to at least that, or use another tokenizer"
            )
