"""Guards on methods that would miss what a shared network keeps in its banks.

Libraries look for dense parameters that a shared network no longer has: Hugging Face models
resize and re-initialize embeddings, optimizers ask a part for its parameters, a dense state
dict is loaded. Each guard does the right thing, or says in one line what to call instead.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from npas.sharing.layers import PREFIX
from npas.sharing.torch_private import caller, frames


def _stay_tied(*_: object, **__: object) -> None:
    """Do nothing: weights that were tied are one generated weight."""


def _refuse_resizing(*_: object, **__: object) -> None:
    raise ValueError(
        "a shared network's size is fixed: resize the embeddings before npas.share, or"
        " npas.materialize the network first"
    )


def _refuse_initializing(*_: object, **__: object) -> None:
    raise ValueError(
        "npas.share has initialized the network: for another start give it another seed"
    )


METHODS: dict[str, Callable[..., object]] = {
    "tie_weights": _stay_tied,
    "resize_token_embeddings": _refuse_resizing,
    "init_weights": _refuse_initializing,
}


def refuse_torch_pruning() -> None:
    """ValueError if torch-pruning's dependency graph is being built, which calls the network.

    It would prune every layer with every other, in a time that grows fast with their number.
    """
    if "torch_pruning" not in sys.modules:
        return
    for frame in frames(caller(1)):
        if frame.f_globals.get("__name__", "").startswith("torch_pruning.dependency"):
            raise ValueError(
                "torch-pruning cannot prune generated weights, which all depend on one bank:"
                " npas.materialize the network first"
            )


def refuse_parametrized_sequence(root: nn.Module) -> None:
    """ValueError for an `nn.Sequential` with a parametrization, which it would call as a module."""
    if isinstance(root, nn.Sequential) and "parametrizations" in root._modules:
        raise ValueError(
            "torch cannot call an nn.Sequential whose own parameters are parametrized: put the"
            " nn.Sequential into a module before npas.share, or remove the parametrization"
        )


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
PARTS: dict[str, Callable[..., object]] = {
    "parameters": _parameters,
    "requires_grad_": _requires_grad_,
}


def _warning(part: nn.Module, recurse: bool, method: str, what: str) -> Callable[[], None] | None:
    """Return what warns at the line that asks; None for a library's that is not there to freeze.

    And where the part reads no bank any more.
    """
    if torch.compiler.is_compiling():
        return None
    asking = caller(2)
    freezes = "freeze" in asking.f_code.co_name
    library = asking.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES
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
        asking.f_code.co_filename,
        asking.f_lineno,
        module=asking.f_globals.get("__name__"),
        registry=asking.f_globals.setdefault("__warningregistry__", {}),
    )


def _refuse_dense(root: nn.Module, state: Mapping[str, Any], prefix: str, *others: Any) -> None:
    """Add to what a strict loading raises, and warn where it would leave out the dense weights."""
    layers = root.__dict__["_npas_shared"].allocation.layers
    dense = [layer.name for layer in layers if layer.templates and prefix + layer.name in state]
    if not dense or any(name.startswith(f"{prefix}{PREFIX}bank_") for name in state):
        return
    reason = (
        f"the weights of {len(dense)} shared layers ({dense[0]}, ...) are a dense network's, which"
        " a shared one cannot load: npas.sharing.project(model, state_dict) brings them into its"
        " banks, as near as they come"
    )
    # torch tells its hooks that every loading is strict.
    stack = list(frames(caller(0)))
    loads = (i for i, frame in enumerate(stack) if frame.f_code.co_name == "load_state_dict")
    level = next(loads, len(stack) - 1) + 1
    if stack[level - 1].f_locals.get("strict", True):
        errors = others[-1]
        errors.append(reason)
    else:
        warnings.warn(f"{reason}; the banks stay as they are", stacklevel=level + 1)


def guard(root: nn.Module) -> None:
    """Put the guards on a network that is now shared."""
    for module in root.modules():
        for name, method in METHODS.items():
            if callable(getattr(type(module), name, None)):
                module.__dict__[name] = method
        if module is not root and any("_npas" in m.__dict__ for m in module.modules()):
            for name, method in PARTS.items():
                module.__dict__[name] = partial(method, module)
    root.register_load_state_dict_pre_hook(_refuse_dense)


def remove_guards(root: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Remove the guards from the modules of a network that is no longer shared."""
    for module in modules:
        for name, method in [*METHODS.items(), *PARTS.items()]:
            own = module.__dict__.get(name)
            if own is method or getattr(own, "func", None) is method:
                del module.__dict__[name]
    for key, hook in list(root._load_state_dict_pre_hooks.items()):
        if getattr(hook, "hook", None) is _refuse_dense:
            del root._load_state_dict_pre_hooks[key]
