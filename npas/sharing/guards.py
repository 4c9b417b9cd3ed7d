"""Guard a shared network against what would look for the dense parameters it no longer has.

Hugging Face's models have such methods: called on a shared network they would fail half-way and
leave it changed. torch-pruning follows the graph from one layer's weight to the next through their
bank. All are known by name, so that nothing is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType

from torch import nn


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


GUARDED = {
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
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("torch_pruning.dependency"):
            raise ValueError(
                "torch-pruning cannot prune generated weights, which all depend on one bank:"
                " npas.materialize the network first"
            )
        frame = frame.f_back


def refuse_parametrized_sequence(root: nn.Module) -> None:
    """ValueError for an `nn.Sequential` with a parametrization, which it would call as a module."""
    if isinstance(root, nn.Sequential) and "parametrizations" in root._modules:
        raise ValueError(
            "torch cannot call an nn.Sequential whose own parameters are parametrized: put the"
            " nn.Sequential into a module before npas.share, or remove the parametrization"
        )


def guard_methods(root: nn.Module) -> None:
    """Put the guards before the methods of those names, wherever in the network they are."""
    for module in root.modules():
        for name, guard in GUARDED.items():
            if callable(getattr(type(module), name, None)):
                module.__dict__[name] = guard


def free_methods(modules: Iterable[nn.Module]) -> None:
    """Take the guards away."""
    for module in modules:
        for name, guard in GUARDED.items():
            if module.__dict__.get(name) is guard:
                del module.__dict__[name]
