"""Model families, task families, sharing schemes and YAML folders of other packages.

A package lists them as entry points: `npas.models`, `npas.tasks` and `npas.schemes`, each a module
(or any object) with the attributes in `OFFERS`; and `npas.configs`, packages that contain YAMLs.
A script registers its own at its top level, so that its child processes do so too:

    npas.register_model("mlp", sys.modules[__name__])
"""

import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OFFERS = {
    "model": ("Config", "build"),
    "task": ("Config", "Task"),
    "scheme": ("learned", "initial", "weight"),  # see npas.sharing.generators.schemes
}
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in OFFERS}


def register_model(name: str, family: Any) -> None:
    """Register an object with `Config` and `build` as `model.family=name`.

    Raises ValueError if npas has a family of that name, or if an attribute is missing.
    """
    register("model", name, family, find_spec(f"npas.models.{name}") is not None)


def register_task(name: str, family: Any) -> None:
    """Register an object with `Config` and `Task` as `task.family=name`.

    Raises ValueError if npas has a family of that name, or if an attribute is missing.
    """
    register("task", name, family, find_spec(f"npas.tasks.{name}") is not None)


def register(kind: str, name: str, family: Any, is_own: bool) -> None:
    """Register an object. Raises ValueError if an attribute is missing or npas has that name."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"register_{kind} needs a name such as 'mine', not {name!r:.80}")
    if is_own:
        raise ValueError(f"{name!r} is a {kind} of npas itself: choose another name")
    _registered[kind][name] = _checked(kind, name, family, f"register_{kind}")


def names(kind: str) -> list[str]:
    """List the names of a kind, a key of `OFFERS`, in other packages and scripts."""
    return sorted({*_registered[kind], *_entries(f"npas.{kind}s")})


def family(kind: str, name: str) -> Any:
    """Return a family of another package or script. Raises ValueError if its import fails."""
    if name in _registered[kind]:
        return _registered[kind][name]
    entry = _entries(f"npas.{kind}s")[name]
    return _checked(kind, name, _load(entry), f"the package of {entry.value}")


def config_folders() -> list[Path]:
    """Return the YAML folders of other packages. Raises ValueError if an import fails."""
    entries = sorted(_entries("npas.configs").items())
    return [Path(path) for _, entry in entries for path in getattr(_load(entry), "__path__", [])]


def _entries(group: str) -> dict[str, EntryPoint]:
    return _found(group, tuple(sys.path))


@cache  # a search reads the metadata of every installed package: 10 ms or more
def _found(group: str, _folders: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load() if entry.attr else import_module(entry.module)
    except Exception as error:  # another package's code may raise anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{entry.group}: {entry.value} cannot be imported ({why})") from error


def _checked(kind: str, name: str, family: Any, source: str) -> Any:
    if missing := [each for each in OFFERS[kind] if not hasattr(family, each)]:
        raise ValueError(f"{source}: the {kind} {name!r} lacks {' and '.join(missing)}")
    if kind == "scheme" and isinstance(family, type):
        raise ValueError(f"{source}: the {kind} {name!r} is a class: give an instance or a module")
    return family
