"""Read JSON, and build dataclasses from plain data, with checked types and no unknown fields."""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from npas.utils.checks import join

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


def decode(
    kind: Any, value: object, where: str = "", optional: Collection[str] = (), loose: bool = False
) -> Any:
    """Return `value` as `kind`: a dataclass, `Literal`, union, dict[str, X], list, tuple or scalar.

    `where` is the full name of the value, for errors, which are ValueErrors. Of a dataclass no
    fields may be missing, except `optional` ones, or unknown. `loose`, for what a user wrote, takes
    all fields as optional and converts scalars without loss: 8.0 to 8, 3 to "3", "a" to ["a"].
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not types.NoneType]
        if value is None and len(options) < len(arguments):
            return None
        for option in options:
            try:
                return decode(option, value, where, optional, loose)
            except ValueError:
                if len(options) == 1:
                    raise
    elif dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where, optional, loose)
    elif origin is typing.Literal and value in arguments and not isinstance(value, bool):
        return value
    elif origin is dict and isinstance(value, Mapping):
        return {
            str(key): decode(arguments[1], item, _at(where, key), optional, loose)
            for key, item in value.items()
        }
    elif origin in (list, tuple):
        items = [value] if loose and (is_number or isinstance(value, str)) else value
        length = len(arguments) if origin is tuple and arguments[-1] is not Ellipsis else None
        if isinstance(items, (list, tuple)) and length in (None, len(items)):
            if arguments[0] is int and all(type(i) is int and abs(i) < LARGEST for i in items):
                return origin(items)  # fast for long lists
            return origin(
                decode(arguments[0], item, f"{where}[{i}]", optional, loose)
                for i, item in enumerate(items)
            )
    elif kind is str and (isinstance(value, str) or (loose and is_number)):
        return str(value)
    elif kind is bool and isinstance(value, bool):
        return value
    elif kind is int and is_number and abs(value) < LARGEST:  # type: ignore[arg-type]
        if isinstance(value, int) or (loose and value.is_integer()):  # type: ignore[attr-defined]
            return int(value)  # type: ignore[call-overload]
    elif kind is float and is_number and abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{where} must be an integer of 64 bits, got {shown(value)}")
    raise ValueError(f"{where} must be {_describe(kind)}, got {shown(value)}")


def _decode_dataclass(
    kind: Any, value: object, where: str, optional: Collection[str], loose: bool
) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'it'} must be a mapping of keys, got {shown(value)}")
    hints = hints_of(kind)
    for name in value:
        if name not in hints:
            raise ValueError(f"{_at(where, shown(name)[1:-1])} is not a field")
    for name in () if loose else hints:
        if name not in value and name not in optional:
            raise ValueError(f"{_at(where, name)} is missing")
    fields = {
        name: decode(hint, value[name], _at(where, name), optional, loose)
        for name, hint in hints.items()
        if name in value
    }
    try:
        return kind(**fields)
    except ValueError as error:  # which may not have the full name of the key
        text = str(error)
        raise ValueError(text if f"{where}." in text or not where else f"{where}: {text}") from None


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def shown(value: object) -> str:
    """Return a value's repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return join(_describe(option) for option in arguments)
    if origin is typing.Literal:
        return join(arguments)
    if origin in (list, tuple):
        return "a list" if arguments[0] is Any else f"a list, each {_describe(arguments[0])}"
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}
    return "a mapping" if origin is dict else {**names, types.NoneType: "null"}.get(kind, str(kind))
