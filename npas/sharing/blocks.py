"""Find the numbered blocks of a network in the names of its parameters.

A block is a name's prefix up to and including its first consecutive numbers: `blocks.3` of
`blocks.3.mlp.0.weight`, `stages.0.1` of `stages.0.1.conv1.weight`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npas.sharing.layers import Layer

BLOCK = re.compile(r"(?:.*?\.)??\d+(?:\.\d+)*(?=\.)")
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
SELECTORS = ("@embeddings", "@first", "@last")


def block_of(name: str) -> str | None:
    """Return the block of a parameter, or None if it is in no block."""
    found = BLOCK.match(name)
    return found[0] if found else None


def place_of(name: str) -> str:
    """Return a parameter's name with `#` for each number, e.g. `blocks.#.fc.weight`."""
    return NUMBER.sub("#", name)


def spell_names(names: Sequence[str]) -> str:
    """Return names that differ only in numbers as one: `blocks.{0-11}.fc.weight`."""
    columns = zip(*(map(int, NUMBER.findall(name)) for name in names), strict=True)
    numbers = iter([_spell(sorted(set(column))) for column in columns])
    return NUMBER.sub(lambda _: next(numbers), names[0])


def _spell(numbers: Sequence[int]) -> str:
    """Return sorted numbers as a number, a range or a list."""
    if len(numbers) == 1:
        return str(numbers[0])
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"


def parts_by_depth(names: Sequence[str], parts: int) -> dict[str, int]:
    """Split the blocks into `parts` consecutive parts; return a dict from name to part.

    A parameter outside of blocks gets the part of the name before it. Raises ValueError if there
    are more parts than blocks.
    """
    blocks = list(dict.fromkeys(block for name in names if (block := block_of(name))))
    if not 1 <= parts <= len(blocks):
        raise ValueError(
            f"groups='depth:{parts}' is out of range: the network has {len(blocks)} numbered"
            " blocks with shareable layers"
        )
    found, part = {}, 0
    for name in names:
        if block := block_of(name):
            part = blocks.index(block) * parts // len(blocks)
        found[name] = part
    return found


def expand(
    patterns: str | Iterable[str] | None, option: str, tensors: Sequence[Layer]
) -> list[str]:
    """Return the patterns with each selector replaced by the parameter names it selects.

    `@embeddings` selects the weights of embeddings, `@first` and `@last` the parameters of the
    first and last numbered block. Raises ValueError for an unknown selector and if no blocks are
    numbered.
    """
    found: list[str] = []
    if patterns is None:
        return found
    is_one = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    for pattern in [patterns] if is_one else patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"{option}={patterns!r} must be a pattern of names, or several")
        if not pattern.startswith("@"):
            found.append(pattern)
            continue
        if pattern not in SELECTORS:
            raise ValueError(f"{option}={pattern!r} is unknown: choose {', '.join(SELECTORS)}")
        selected = _selected(tensors)[pattern]
        if not selected and pattern != "@embeddings":
            raise ValueError(f"{option}={pattern!r} selects nothing: no numbered blocks found")
        found += map(glob.escape, selected)
    return found


def _selected(tensors: Sequence[Layer]) -> Mapping[str, list[str]]:
    blocks = {tensor.spec.name: block_of(tensor.spec.name) for tensor in tensors}
    numbered = [block for block in blocks.values() if block] or [""]
    ends = numbered[0], numbered[-1]
    first, last = ([name for name, block in blocks.items() if block == end] for end in ends)
    kinds = ("embedding", "embeddingbag")
    embeddings = [tensor.spec.name for tensor in tensors if tensor.spec.kind in kinds]
    return dict(zip(SELECTORS, (embeddings, first, last), strict=True))
