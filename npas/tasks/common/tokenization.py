"""Cut texts into tokens, and give them to a network: what the tasks on texts have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npas.models import _hub
from npas.tasks.common import files, synthetic_text

# What a tokenizer consists of, and of which one part will do.
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "vocab.txt", "spiece.model")
NEEDED = ("tokenizer.json", "vocab.txt", "spiece.model")
SPECIAL = ("cls", "sep", "pad", "mask")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of `transformers` by the key and the name that the config has for it."""

    name: str
    inner: Any
    key: str = "task.tokenizer"

    @cached_property
    def size(self) -> int:
        """Count the words, special ones included: ids are below."""
        return len(self.inner)

    def special(self, kind: str) -> int:
        """Return the id of the token that starts ("cls"), parts, pads or hides; ValueError."""
        found: int | None = getattr(self.inner, f"{kind}_token_id")
        if found is None:
            raise ValueError(f"{self.key}={self.name} has no {kind} token: use one of a BERT")
        return found

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
            found: list[Any] = backend.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library has no other class of its own
            raise ValueError(f"{self.key}={self.name} cannot cut a text ({error})") from None
        return found


def load_tokenizer(name: str, download: bool = True, key: str = "task.tokenizer") -> Tokenizer:
    """Load the tokenizer in folder `name`, or of that name on the hub. ValueError, in one line.

    Without `download` the hub itself is not asked, only what its cache here holds. `key` is what
    the config calls it.
    """
    folder = _hub.find_folder(key, name, FILES, NEEDED, download=download)
    try:
        return _load(folder, name, key)
    except ValueError as error:
        if _names_its_kind(folder):
            raise
        raise ValueError(
            f"{key}={name} does not say what kind of tokenizer it is: put a config.json with its"
            ' model_type there, as {"model_type": "bert"} or {"model_type": "albert"}'
        ) from error


def _names_its_kind(folder: Path) -> bool:
    """Return whether the files say by which of transformers' classes they are to be read."""
    for file, field in (
        ("config.json", "model_type"),
        ("tokenizer_config.json", "tokenizer_class"),
    ):
        with suppress(OSError, ValueError, TypeError):
            if field in json.loads((folder / file).read_text(encoding="utf-8")):
                return True
    return False


def _load(folder: Path, name: str, key: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        with _hub.quietly():
            inner = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever a broken file makes its readers say
        raise ValueError(f"{key}={name} cannot be read ({files.reason(error)})") from error
    if not getattr(inner, "is_fast", False):
        raise ValueError(
            f"{key}={name} is a slow one, which does not say where in a text its tokens"
            " are: save it as tokenizer.json"
        )
    tokenizer = Tokenizer(name, inner, key)
    for kind in SPECIAL:
        tokenizer.special(kind)
    return tokenizer


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


def check_network(model: nn.Module, tokenizer: Tokenizer) -> None:
    """ValueError if the network knows fewer words than the tokenizer."""
    config = getattr(getattr(model, "module", model), "config", None)
    known = getattr(config, "vocab_size", None)
    if known is not None and known < tokenizer.size:
        raise ValueError(
            f"{tokenizer.key}={tokenizer.name} has {tokenizer.size:,} words, and the network knows"
            f" model.vocab_size={known}: set it to at least that, or use another tokenizer"
        )
