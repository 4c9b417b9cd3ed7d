"""Build the dataclasses of a config from plain data, with suggestions for unknown keys.

build(Export, {"run": 3})             # Export(run="3", format="safetensors")
build(Export, {"fromat": "onnx"})     # ValueError: unknown key 'fromat': did you mean 'format'?
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

from npas.config.renames import new_name
from npas.utils.checks import join
from npas.utils.json_data import decode, hints_of

T = TypeVar("T")


def build(kind: type[T], raw: object, prefix: str = "", known: Collection[str] = ()) -> T:
    """Build the dataclass `kind` from a mapping. Raises ValueError that names the key.

    `prefix` is the node's full name, empty at the top; errors suggest keys out of `known`.
    """
    start = f"{prefix}." if prefix else ""
    for key in _unknown(kind, raw, start):
        raise ValueError(unknown_key(key, known or set(keys_of(kind, start))))
    found: T = decode(kind, raw, prefix, loose=True)
    return found


def _unknown(kind: Any, raw: object, start: str) -> Iterator[str]:
    hints = hints_of(kind)
    for name, value in raw.items() if isinstance(raw, Mapping) else ():
        if name not in hints:
            key = f"{start}{name}"
            while isinstance(value, Mapping) and len(value) == 1:
                ((name, value),) = value.items()
                key = f"{key}.{name}"
            yield key
        elif dataclasses.is_dataclass(hints[name]):
            yield from _unknown(hints[name], value, f"{start}{name}.")


def keys_of(kind: type, start: str = "") -> Iterator[str]:
    """Yield the full names of all keys of a dataclass, nested ones included."""
    for name, hint in hints_of(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from keys_of(cast(type, hint), f"{start}{name}.")
        else:
            yield f"{start}{name}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown key, with a suggestion out of `known`."""
    if new := new_name(key):
        return f"unknown key {key!r}: it is now {new!r}"
    known = sorted(known)
    parts = key.split(".")
    nodes = [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]  # innermost first
    if within := [name for name in known if name.startswith(f"{key}.")]:
        return f"{key} is a node of keys: choose {key}=NAME, or set {join(within)}"
    if suggestion := _suggestion(key, known):
        return f"unknown key {key!r}: did you mean {suggestion!r}?"
    for node in nodes:
        names = [name.removeprefix(f"{node}.") for name in known if name.startswith(f"{node}.")]
        if names:
            return f"unknown key {key!r}: {node} has {join(names, 'and')}"
    return f"unknown key {key!r}: there are {join(dict.fromkeys(map(_first, known)), 'and')}"


def _suggestion(key: str, known: list[str]) -> str | None:
    """Return the closest key: by its last part in the same node, in full, or by its last part."""
    node, _, leaf = key.rpartition(".")
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    own = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == node}
    whole = {name: name for name in (*known, *map(_first, known))}
    for word, names, cutoff in ((leaf, own, 0.6), (key, whole, 0.8), (leaf, leaves, 0.75)):
        folded = {other.casefold(): name for other, name in names.items()}
        close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=cutoff)
        if close and folded[close[0]] != key:
            return folded[close[0]]
    return None


def _first(key: str) -> str:
    return key.partition(".")[0]
