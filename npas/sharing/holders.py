"""Find who still holds the dense parameters that sharing has dropped, and warn of it by name."""

from __future__ import annotations

import gc
import os
import sys
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import CellType, FrameType, FunctionType
from typing import Any

from torch import nn

Dropped = Mapping[str, "weakref.ref[nn.Parameter]"]

_CONTAINERS = (list, tuple, dict, set, frozenset, CellType)
_DEEPEST = 6  # parameter <- list <- group <- list of groups <- attributes <- optimizer
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def warn_of_holders(dropped: Dropped) -> None:
    """Warn of each optimizer, list or function that holds parameters which the network lost.

    Such a thing would go on with parameters that nothing trains or reads. Where none of them is
    alive, as is usual, this costs nothing. What only autograd's graph or a variable holds is left
    out: nothing can come of it.
    """
    if all(parameter() is None for parameter in dropped.values()):
        return
    gc.collect()
    held = {id(ref()): name for name, ref in dropped.items() if ref() is not None}
    found = _find_holders(
        [found for found in (ref() for ref in dropped.values()) if found is not None]
    )
    for holder, ids in found.items():
        names = [name for key, name in held.items() if key in ids]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        count = "1 parameter that is" if len(names) == 1 else f"{len(names)} parameters that are"
        warnings.warn(
            f"{holder} was made before npas.share and holds {count} no longer the network's"
            f" ({shown}): make it after sharing",
            stacklevel=_level_outside(),
        )


def _find_holders(parameters: Sequence[nn.Parameter]) -> dict[str, set[int]]:
    """Return the ids of the parameters that each holder has, by what the holder is called."""
    found: dict[str, set[int]] = {}
    reached: dict[int, set[int]] = {id(p): {id(p)} for p in parameters}
    level: Sequence[Any] = parameters
    ours = {id(level), id(found), id(reached), id(parameters)}
    seen: set[int] = set()
    for _ in range(_DEEPEST):
        if not level:
            break
        referrers = gc.get_referrers(*level)
        ours |= {id(referrers), id(level)}
        next_level: list[Any] = []
        ours.add(id(next_level))
        climbed: set[int] = set()
        for referrer in referrers:
            if id(referrer) in ours or isinstance(referrer, FrameType):
                continue
            below = [id(x) for x in gc.get_referents(referrer) if id(x) in reached]
            if id(referrer) in seen:  # reached by a shorter way, as an optimizer by its state
                climbed.update(below)
                continue
            ids = set().union(*(reached[key] for key in below))
            if isinstance(referrer, dict) and "__builtins__" in referrer:
                continue  # the variables of a module
            climbed.update(below)
            if isinstance(referrer, _CONTAINERS):
                reached.setdefault(id(referrer), set()).update(ids)
                next_level.append(referrer)
            else:
                found.setdefault(_name(referrer), set()).update(ids)
        if level is not parameters:
            _name_containers(found, reached, (x for x in level if id(x) not in climbed))
        seen |= {id(x) for x in next_level}
        level = next_level
    return found


def _name_containers(
    found: dict[str, set[int]], reached: Mapping[int, set[int]], alone: Iterable[Any]
) -> None:
    """Take in the containers that nothing but a variable holds."""
    for container in alone:
        name = f"a {type(container).__name__}"
        found.setdefault(name, set()).update(reached[id(container)])


def _name(holder: object) -> str:
    if isinstance(holder, FunctionType):
        return f"the function {holder.__qualname__}"
    return type(holder).__name__


def _level_outside() -> int:
    """Return the `stacklevel` with which a caller's warning names the line that called npas."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
