"""The tasks npas trains on: a module or a package for each family.

A family offers `Config` (a dataclass: the closed set of its `task.*` keys) and `Task`, a class
derived from `npas.tasks.base.Task`. `family("cifar")` finds the package `cifar`.
"""

from typing import Any

from npas.models import find_family

SHARED = frozenset({"base", "classification", "common", "scenes"})  # of several families


def family(name: str) -> Any:
    """Return the module of task family `name`. ValueError, with near names, if there is none."""
    return find_family(__name__, "task", name, SHARED)
