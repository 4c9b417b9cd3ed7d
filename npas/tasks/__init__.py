"""The tasks: a module or a package for each family.

A family has `Config`, a dataclass of its `task.*` keys, and `Task`, a `npas.tasks.base.Task`; a
package has them in its module `task`. `family("cifar")` returns the module.
"""

from typing import Any

from npas.models import find_family

SHARED = frozenset({"base", "classification", "common", "scenes"})  # not families


def family(name: str) -> Any:
    """Return the module of task family `name`; raises ValueError with similar names if unknown."""
    return find_family(__name__, "task", name, SHARED)
