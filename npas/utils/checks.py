"""Range checks of config values, and lists in sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def join(names: Iterable[object], last: str = "or") -> str:
    """Write names as a list in a sentence: `a, b or c`."""
    *head, tail = [str(name) for name in names]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def near(name: str, names: list[str]) -> str:
    """Suggest the closest of `names`, or list all of them."""
    close = difflib.get_close_matches(str(name), names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}"


def at_least(key: str, value: float | None, limit: float) -> None:
    """Raise ValueError unless the value is None or at least `limit`."""
    if value is not None and not value >= limit:
        raise ValueError(f"{key} must be at least {limit}, got {value}")


def at_most(key: str, value: float, limit: float) -> None:
    """Raise ValueError if the value is above `limit`."""
    if value > limit:
        raise ValueError(f"{key} must be at most {limit}, got {value}")


def above(key: str, value: float, limit: float) -> None:
    """Raise ValueError unless the value is above `limit`."""
    if value <= limit:
        raise ValueError(f"{key} must be above {limit}, got {value}")


def below(key: str, value: float, limit: float) -> None:
    """Raise ValueError unless the value is below `limit`."""
    if value >= limit:
        raise ValueError(f"{key} must be below {limit}, got {value}")


def within(prefix: str, config: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError unless each of these keys is within its limits, both included."""
    for key, (least, most) in limits.items():
        at_least(f"{prefix}.{key}", getattr(config, key), least)
        at_most(f"{prefix}.{key}", getattr(config, key), most)


def intervals(prefix: str, config: object, **limits: str) -> None:
    """Raise ValueError unless each key that is set is in its interval, such as "[0, 1)"."""
    for key, text in limits.items():
        if (value := getattr(config, key)) is not None:
            low, high = (_number(end) for end in text[1:-1].split(","))
            (at_least if text[0] == "[" else above)(f"{prefix}{key}", value, low)
            (at_most if text[-1] == "]" else below)(f"{prefix}{key}", value, high)


def _number(text: str) -> float:
    return int(text) if text.strip().isdigit() else float(text)
