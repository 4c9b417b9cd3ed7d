"""Build dataclasses from plain data, with checked types and no unknown keys.

    build(Export, {"run": 3})             # Export(run="3", format="safetensors")
    build(Export, {"fromat": "onnx"})     # ValueError: unknown key 'fromat': did you mean 'format'?

Fields may be numbers, str, bool, `Literal`, lists, mappings, `X | None` and dataclasses. An error
is a ValueError with the key's full name.
"""

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from npas.config.renames import new_name
from npas.utils.checks import join

T = TypeVar("T")


def build(kind: type[T], raw: object, prefix: str = "", known: Iterable[str] | None = None) -> T:
    """Build the dataclass `kind` from a mapping.

    `prefix` is the node's full name, empty at the top; errors suggest keys out of `known`.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{prefix or 'the config'} must be a mapping of keys, got {raw!r}")
    start = f"{prefix}." if prefix else ""
    known = set(keys_of(kind, start)) if known is None else set(known)
    hints = _hints_of(kind)
    for name, value in raw.items():
        if name not in hints:
            raise ValueError(unknown_key(_innermost(f"{start}{name}", value), known))
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        if name in raw and dataclasses.is_dataclass(hint):
            values[name] = build(cast(type, hint), raw[name], f"{start}{name}", known)
        elif name in raw:
            values[name] = convert(raw[name], hint, f"{start}{name}")
    try:
        return kind(**values)
    except ValueError as error:
        # A family's own error may not have the full name of the key.
        text = str(error)
        raise ValueError(text if not prefix or start in text else f"{prefix}: {text}") from None


def convert(value: Any, hint: Any, key: str) -> Any:
    """Convert `value` to the type `hint`. Raises ValueError, naming `key`, if it has another."""
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        for option in arguments:
            if option is not NoneType:
                try:
                    return convert(value, option, key)
                except ValueError:
                    continue
    elif origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
    elif origin is list and isinstance(value, (list, tuple, str, int, float)):
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return [convert(item, arguments[0], key) for item in items]
    elif origin is dict and isinstance(value, Mapping):
        return {
            str(name): convert(item, arguments[1], f"{key}.{name}") for name, item in value.items()
        }
    elif hint is bool and isinstance(value, bool):
        return value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if hint is int and (isinstance(value, int) or value.is_integer()):
            return int(value)
        if hint is float and abs(value) <= sys.float_info.max:
            return float(value)
        if hint is str:
            return str(value)
    elif hint is str and isinstance(value, str):
        return value
    raise ValueError(f"{key} must be {_describe(hint)}, got {value!r:.200}")


def keys_of(kind: type, start: str = "") -> Iterator[str]:
    """Yield the full names of all keys of a dataclass, nested ones included."""
    for name, hint in _hints_of(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from keys_of(cast(type, hint), f"{start}{name}.")
        else:
            yield f"{start}{name}"


def _hints_of(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; class variables are no keys."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, kind))}


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown key, with a suggestion out of `known`."""
    if new := new_name(key):
        return f"unknown key {key!r}: it is now {new!r}"
    known = sorted(known)
    parts = key.split(".")
    nodes = [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]  # innermost first
    for node in nodes:
        if node in known:
            return f"unknown key {key!r}: {node} takes a value, not keys; write {node}=VALUE"
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


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return join(_describe(option) for option in arguments)
    if origin is Literal:
        return join(arguments)
    if origin is list:
        return f"a list, each {_describe(arguments[0])}"
    if origin is dict:
        return "a mapping"
    names = {int: "a whole number", float: "a finite number", bool: "true or false"}
    return {**names, str: "text", NoneType: "null"}.get(hint, str(hint))


def _innermost(key: str, value: object) -> str:
    while isinstance(value, Mapping) and len(value) == 1:
        ((name, value),) = value.items()
        key = f"{key}.{name}"
    return key


def _first(key: str) -> str:
    return key.partition(".")[0]
