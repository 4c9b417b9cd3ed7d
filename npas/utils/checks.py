"""Checks of values, ranges and paths, and lists in sentences."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, SupportsFloat, get_origin, get_type_hints

NUMBER = SupportsFloat, "a number"


def join(names: Iterable[object], last: str = "or") -> str:
    """Write names as a list in a sentence: `a, b or c`."""
    *head, tail = [str(name) for name in names]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def near(name: str, names: list[str]) -> str:
    """Suggest the closest of `names`, or list all of them."""
    close = difflib.get_close_matches(str(name), names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}"


def one_line(text: object) -> str:
    """Return the start of a text, such as an error's, in one line."""
    return " ".join(str(text).split())[:200]


def require(key: str, value: Any, kinds: Any, what: str) -> Any:
    """Return the value; raise ValueError unless it is of these types. A bool is no number."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise ValueError(f"{key}={one_line(repr(value))} must be {what}")
    return value


def path_of(value: object) -> Path:
    """Return a path; raise ValueError for a value that is none, such as an empty string."""
    kinds = () if value == "" else (str, os.PathLike)
    return Path(require("path", value, kinds, "the name of a file or folder"))


def at_least(key: str, value: float | None, limit: float) -> None:
    """Raise ValueError unless the value is None or at least `limit`."""
    if value is not None and not require(key, value, *NUMBER) >= limit:
        raise ValueError(f"{key} must be at least {limit}, got {value}")


def at_most(key: str, value: float, limit: float) -> None:
    """Raise ValueError unless the value is at most `limit`."""
    if not require(key, value, *NUMBER) <= limit:
        raise ValueError(f"{key} must be at most {limit}, got {value}")


def above(key: str, value: float, limit: float) -> None:
    """Raise ValueError unless the value is above `limit`."""
    if not require(key, value, *NUMBER) > limit:
        raise ValueError(f"{key} must be above {limit}, got {value}")


def below(key: str, value: float, limit: float) -> None:
    """Raise ValueError unless the value is below `limit`."""
    if not require(key, value, *NUMBER) < limit:
        raise ValueError(f"{key} must be below {limit}, got {value}")


def intervals(prefix: str, config: object, **limits: str) -> None:
    """Raise ValueError unless each key that is set is in its interval, such as "[0, 1)"."""
    for key, text in limits.items():
        if (value := getattr(config, key)) is not None:
            low, high = (_number(end) for end in text[1:-1].split(","))
            (at_least if text[0] == "[" else above)(f"{prefix}{key}", value, low)
            (at_most if text[-1] == "]" else below)(f"{prefix}{key}", value, high)


def _number(text: str) -> float:
    return int(text) if text.strip().isdigit() else float(text)


class Ranged:
    """The base of dataclasses whose keys name their intervals, which the constructor checks.

    class Config(Ranged, section="model."):
        width: Annotated[int, "[1, 65536]"] = 256
    """

    section: ClassVar[str] = ""  # of a config, with a dot

    def __init_subclass__(cls, section: str | None = None) -> None:
        if section is not None:
            cls.section = section

    def __post_init__(self) -> None:
        kind: Any = type(self)
        intervals(self.section, self, **intervals_of(kind))


@cache
def intervals_of(kind: type) -> dict[str, str]:
    """Return the intervals of a dataclass's keys."""
    hints = get_type_hints(kind, include_extras=True).items()
    return {name: hint.__metadata__[0] for name, hint in hints if get_origin(hint) is Annotated}
