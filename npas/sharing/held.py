"""Find parameters that a network also holds outside of its registered modules."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType

import torch
from torch import Tensor, nn

CONTAINERS = (list, tuple, set, deque, Mapping)
_EMPTY = CellType()


def find_held(model: nn.Module) -> dict[int, str]:
    """Return where parameters are held besides in registered modules, by the parameters' ids.

    That is in a module's attributes, three deep: lists and the like, objects, partial functions,
    closures, views, and modules that are not registered. Hooks, optimizers and the modules that an
    object knows (a trainer, a traced graph) do not count.
    """
    known = set(model.modules())

    def inside(value: object, depth: int = 3, by_object: bool = False) -> Iterator[nn.Parameter]:
        if isinstance(value, Tensor):
            whole = value if isinstance(value, nn.Parameter) else value._base
            yield from [whole] if isinstance(whole, nn.Parameter) else []
        elif isinstance(value, nn.Module):
            yield from () if by_object or value in known else value.parameters()
        elif depth:
            by_object = by_object or not isinstance(value, CONTAINERS)
            for part in _parts(value):
                yield from inside(part, depth - 1, by_object)

    found: dict[int, str] = {}
    for prefix, module in model.named_modules():
        own = {"_parameters", "_modules"}
        if isinstance(module, nn.RNNBase):
            own.add("_flat_weights")
        for attribute in module.__dict__.keys() - own:
            if attribute.endswith("_hooks"):
                continue
            for parameter in inside(module.__dict__[attribute]):
                found[id(parameter)] = f"{prefix}.{attribute}".lstrip(".")
    return found


def _parts(value: object) -> Iterable[object]:
    """Return what a container, an object or a function holds; nothing for an optimizer."""
    if isinstance(value, CONTAINERS):
        return list(value.values() if isinstance(value, Mapping) else value)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
    if isinstance(value, (torch.optim.Optimizer, type)):
        return []
    return list(getattr(value, "__dict__", {}).values())
