"""Find what other packages bring: model and task families, and folders of YAMLs.

A package names them as entry points: `npas.models` and `npas.tasks`, each a module (or any object)
with `Config` and `build`, or with `Config` and `Task`; `npas.configs`, a package that holds YAMLs.
A script registers its own, at its top level, so that the processes that it starts do so too:

    npas.register_model("mlp", sys.modules[__name__])
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OFFERS = {"model": ("Config", "build"), "task": ("Config", "Task")}
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in OFFERS}


def register_model(name: str, family: Any) -> None:
    """Let `model.family=name` be this family: an object with `Config` and `build`; ValueError."""
    _register("model", name, family)


def register_task(name: str, family: Any) -> None:
    """Let `task.family=name` be this family: an object with `Config` and `Task`; ValueError."""
    _register("task", name, family)


def _register(kind: str, name: str, family: Any) -> None:
    if find_spec(f"npas.{kind}s.{name}") is not None:
        raise ValueError(f"{name!r} is a {kind} family of npas itself: choose another name")
    _registered[kind][name] = _checked(kind, name, family, f"register_{kind}")


def names(kind: str) -> list[str]:
    """List the families of a kind, "model" or "task", that are not npas' own."""
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
        raise ValueError(f"{who}: the {kind} family {name!r} lacks {' and '.join(lacking)}")
    return family
