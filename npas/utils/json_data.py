"""Build dataclasses from JSON data, with checked types and no unknown fields.

Unlike for a config (`npas.config.typed`), types are not converted: npas wrote these files itself.
"""

import contextlib
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

LARGEST = 1 << 63  # integers from here on are refused: torch has 64 bits


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError if it cannot be read, ValueError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_log(path: Path, count: int | None = None) -> list[dict[str, Any]]:
    """Return the records with a step in a log.jsonl, or in its first `count` lines, if it exists.

    A line that was damaged, by a kill or a full disk, is left out.
    """
    records = []
    for line in path.read_bytes().splitlines()[:count] if path.is_file() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def finite(node: Any) -> Any:
    """Return JSON data with None for numbers that are not finite."""
    if isinstance(node, dict):
        return {name: finite(value) for name, value in node.items()}
    if isinstance(node, list):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def decode(kind: Any, value: object, where: str = "", optional: Collection[str] = ()) -> Any:
    """Return `value` as `kind`: a dataclass, dict[str, X], X | None, a list, tuple or JSON type.

    `optional` are names of fields that may be missing because they have defaults; `where` is the
    full name of the value.
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        return decode(kind, value, where, optional)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where, optional)
    if origin is dict:
        items = _mapping(value, where).items()
        return {key: decode(arguments[1], item, _at(where, key), optional) for key, item in items}
    if origin in (list, tuple):
        length = len(arguments) if origin is tuple and arguments[-1] is not Ellipsis else None
        if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
            of = "" if length is None else f" of {length}"
            raise ValueError(f"{where} must be a list{of}, not {shown(value)}")
        if arguments[0] is int and all(type(item) is int for item in value):  # fast for long lists
            if any(abs(item) >= LARGEST for item in value):
                raise ValueError(f"{where} must be within 64 bits, not {shown(value)}")
            return origin(value)
        return origin(
            decode(arguments[0], item, f"{where}[{i}]", optional) for i, item in enumerate(value)
        )
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError(f"{where} must be within 64 bits, not {shown(value)}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_KINDS[kind]}, not {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, not {value!r}")
    return value


def shown(value: object) -> str:
    """Return a value's repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
_hints = functools.cache(typing.get_type_hints)


def _decode_dataclass(kind: Any, value: object, where: str, optional: Collection[str]) -> Any:
    entries = _mapping(value, where)
    hints = _hints(kind)
    for name in entries:
        if name not in hints:
            raise ValueError(f"{_at(where, shown(name)[1:-1])} is not a field of this file")
    for name in hints:
        if name not in entries and name not in optional:
            raise ValueError(f"{_at(where, name)} is missing")
    fields = {
        name: decode(hint, entries[name], _at(where, name), optional)
        for name, hint in hints.items()
        if name in entries
    }
    return kind(**fields)


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where or 'the file'} must be a JSON object, not {shown(value)}")
    return value


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
