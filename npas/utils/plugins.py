"""Find what other packages bring: model and task families, sharing schemes, folders of YAMLs.

A package names them as entry points: `npas.models`, `npas.tasks` and `npas.schemes`, each a module
(or any object) with the parts of `OFFERS`; `npas.configs`, a package that holds YAMLs.
A script registers its own, at its top level, so that the processes that it starts do so too:

    npas.register_model("mlp", sys.modules[__name__])
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OFFERS = {
    "model": ("Config", "build"),
    "task": ("Config", "Task"),
    "scheme": ("learned", "initial", "weight"),  # see npas.sharing.schemes
}
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in OFFERS}


def register_model(name: str, family: Any) -> None:
    """Let `model.family=name` be this family: an object with `Config` and `build`; ValueError."""
    register("model", name, family, find_spec(f"npas.models.{name}") is not None)


def register_task(name: str, family: Any) -> None:
    """Let `task.family=name` be this family: an object with `Config` and `Task`; ValueError."""
    register("task", name, family, find_spec(f"npas.tasks.{name}") is not None)


def register(kind: str, name: str, family: Any, is_own: bool) -> None:
    """Register what a script brings; ValueError where a part lacks, or the name is npas' own."""
    if is_own:
        raise ValueError(f"{name!r} is a {kind} of npas itself: choose another name")
    _registered[kind][name] = _checked(kind, name, family, f"register_{kind}")


def names(kind: str) -> list[str]:
    """List what there is of a kind, one of `OFFERS`, that is not npas' own."""
    return sorted({*_registered[kind], *_entries(f"npas.{kind}s")})


def family(kind: str, name: str) -> Any:
    """Return a family of another package or script; ValueError if it cannot be imported."""
    if name in _registered[kind]:
        return _registered[kind][name]
    entry = _entries(f"npas.{kind}s")[name]
    return _checked(kind, name, _load(entry), f"the package of {entry.value}")


def config_folders() -> list[Path]:
    """Return the folders of YAMLs that packages bring; ValueError if one cannot be imported."""
    entries = sorted(_entries("npas.configs").items())
    return [Path(path) for _, entry in entries for path in getattr(_load(entry), "__path__", [])]


def _entries(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load() if entry.attr else import_module(entry.module)
    except Exception as error:  # whatever another package's code raises
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{entry.group}: {entry.value} cannot be imported ({why})") from error


def _checked(kind: str, name: str, family: Any, who: str) -> Any:
    if lacking := [each for each in OFFERS[kind] if not hasattr(family, each)]:
        raise ValueError(f"{who}: the {kind} {name!r} lacks {' and '.join(lacking)}")
    return family
