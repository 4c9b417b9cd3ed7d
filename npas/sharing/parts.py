"""Warn where a part of a shared network is asked for parameters that only the whole has.

`SGD(model.fc.parameters())` and `model.layer1.requires_grad_(False)` would leave out the weights
that the part reads from the network's banks, and nothing would show it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import nn

# These go through a network's parts for their own book-keeping, over and over.
_LIBRARIES = (
    *("torch", "npas", "transformers", "accelerate", "peft", "deepspeed"),
    *("lightning", "pytorch_lightning", "lightning_fabric"),
)


def _parameters(part: nn.Module, recurse: bool = True) -> Iterator[nn.Parameter]:
    found = type(part).parameters(part, recurse)
    warn = _warning(part, recurse, "parameters()", "lacks")
    return found if warn is None else _after_first(found, warn)


def _after_first(found: Iterator[nn.Parameter], warn: Callable[[], None]) -> Iterator[nn.Parameter]:
    """Yield what is found, and warn if more than the first is asked for.

    `next(part.parameters()).device` is a usual question, and no sign of training.
    """
    first = next(found, None)
    if first is not None:
        yield first
    warn()
    yield from found


def _requires_grad_(part: nn.Module, requires_grad: bool = True) -> nn.Module:
    warn = _warning(part, True, "requires_grad_()", "does not reach")
    if warn is not None:
        warn()
    return type(part).requires_grad_(part, requires_grad)


# Not named_parameters, of which torch.compile demands that it be a method.
GUARDS = {"parameters": _parameters, "requires_grad_": _requires_grad_}


def guard_parts(root: nn.Module) -> None:
    """Put the guards before the methods of every module but the root that reads a bank."""
    for module in root.modules():
        if module is not root and any("_npas" in m.__dict__ for m in module.modules()):
            for name, guard in GUARDS.items():
                module.__dict__[name] = partial(guard, module)


def free_parts(modules: Iterable[nn.Module]) -> None:
    """Take the guards away."""
    for module in modules:
        for name, guard in GUARDS.items():
            if getattr(module.__dict__.get(name), "func", None) is guard:
                del module.__dict__[name]


def _warning(part: nn.Module, recurse: bool, method: str, what: str) -> Callable[[], None] | None:
    """Return what warns at the line that asks; None for a library's that is not there to freeze.

    And where the part reads no bank any more.
    """
    if torch.compiler.is_compiling():
        return None
    caller = sys._getframe(2)
    freezes = "freeze" in caller.f_code.co_name
    library = caller.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES
    if not freezes and (library or not recurse):
        return None
    if not any("_npas" in module.__dict__ for module in part.modules()):
        return None
    return partial(
        warnings.warn_explicit,
        f"{method} of a part {what} the weights that it reads from the network's banks: to train"
        " or freeze a part alone, share without it (exclude) or give it a group of its own, and"
        " train or freeze that group's bank and coefficients",
        UserWarning,
        caller.f_code.co_filename,
        caller.f_lineno,
        module=caller.f_globals.get("__name__"),
        registry=caller.f_globals.setdefault("__warningregistry__", {}),
    )
