"""Checks of values, ranges and paths, and lists in sentences."""

import difflib
import operator
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, SupportsFloat, get_origin, get_type_hints

LIMITS: dict[str, tuple[str, Callable[[Any, float], bool]]] = {  # by bracket of an interval
    "[": ("at least", operator.ge),
    "(": ("above", operator.gt),
    "]": ("at most", operator.le),
    ")": ("below", operator.lt),
}


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


def within(key: str, value: float, interval: str) -> None:
    """Raise ValueError unless a value is in an interval such as "[0, 1)": 0 <= value < 1."""
    require(key, value, SupportsFloat, "a number")
    low, high = interval[1:-1].split(",")
    for bracket, end in ((interval[0], low), (interval[-1], high)):
        text, holds = LIMITS[bracket]
        limit = int(end) if end.strip().isdigit() else float(end)
        if not holds(value, limit):
            raise ValueError(f"{key} must be {text} {limit}, got {value}")


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
        for key, interval in intervals_of(kind).items():
            if (value := getattr(self, key)) is not None:
                within(f"{self.section}{key}", value, interval)


@cache
def intervals_of(kind: type) -> dict[str, str]:
    """Return the intervals of a dataclass's keys."""
    hints = get_type_hints(kind, include_extras=True).items()
    return {name: hint.__metadata__[0] for name, hint in hints if get_origin(hint) is Annotated}
