"""Vocabularies: the text of tokens, and its number of bytes.

Bits per byte compare language models with different tokenizers. The bytes of a token are counted as
in Parameter Golf (openai/parameter-golf): a control, unknown or unused piece has 0, a byte piece 1,
any other piece the UTF-8 length of its text without a leading U+2581. That mark is a space and
counts 1 more, unless the previous token is a control, unknown or unused piece.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of V tokens, and how to encode and decode text."""

    bytes_V: Tensor  # int64, without the leading space
    starts_with_space_V: Tensor  # bool
    is_boundary_V: Tensor  # bool: a space after these is not counted
    pieces: tuple[bytes, ...] = ()  # if tokens are characters or bytes
    processor: Any = None  # of SentencePiece

    def __len__(self) -> int:
        return len(self.bytes_V)

    def bytes_of(self, tokens: Tensor, before: Tensor) -> Tensor:
        """Return each token's number of bytes, int64, given the token before it."""
        space = self.starts_with_space_V[tokens] & ~self.is_boundary_V[before]
        return self.bytes_V[tokens] + space

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the tokens' text; invalid UTF-8 becomes U+FFFD."""
        if self.processor is not None:
            return str(self.processor.decode(list(tokens)))
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        if self.processor is not None:
            return list(self.processor.encode(text))
        number = {piece: i for i, piece in enumerate(self.pieces)}
        if len(number) == 256:  # bytes; else characters
            return list(text.encode())
        return [number[character.encode()] for character in text]


def of_pieces(pieces: Sequence[bytes]) -> Vocabulary:
    """Return the vocabulary of tokens with these bytes."""
    none_V = torch.zeros(len(pieces), dtype=torch.bool)
    lengths_V = torch.tensor([len(piece) for piece in pieces])
    return Vocabulary(lengths_V, none_V, none_V, tuple(pieces))


@functools.cache
def of_sentencepiece(path: Path) -> Vocabulary:
    """Return the vocabulary of a SentencePiece model; raises ValueError if it cannot be read."""
    import sentencepiece

    if not path.is_file():
        raise ValueError(f"{path} is missing: set task.tokenizer to a SentencePiece model, or null")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise ValueError(f"{path} is not a SentencePiece model") from None
    ids = range(processor.vocab_size())
    boundaries = (processor.is_control, processor.is_unknown, processor.is_unused)
    is_boundary_V = torch.tensor([any(check(i) for check in boundaries) for i in ids])
    pieces = [processor.id_to_piece(i) for i in ids]
    is_byte_V = torch.tensor([processor.is_byte(i) for i in ids])
    starts_V = torch.tensor([piece.startswith(SPACE) for piece in pieces])
    lengths_V = torch.tensor([len(piece.removeprefix(SPACE).encode()) for piece in pieces])
    lengths_V = lengths_V.masked_fill(is_byte_V, 1).masked_fill(is_boundary_V, 0)
    return Vocabulary(
        lengths_V, starts_V & ~is_byte_V & ~is_boundary_V, is_boundary_V, (), processor
    )
