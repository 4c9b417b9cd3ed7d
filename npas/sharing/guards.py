"""Guard a shared network's methods that would look for the dense parameters it no longer has.

Hugging Face's models bring some: called on a shared network they would fail half-way and leave it
changed. Known by name, so that nothing is imported.
"""

from __future__ import annotations

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


def guard_methods(root: nn.Module) -> None:
    """Put the guards before the methods of those names, wherever in the network they are."""
    for module in root.modules():
        for name, guard in GUARDED.items():
            if callable(getattr(type(module), name, None)):
                module.__dict__[name] = guard


def free_methods(root: nn.Module) -> None:
    """Take the guards away."""
    for module in root.modules():
        for name, guard in GUARDED.items():
            if module.__dict__.get(name) is guard:
                del module.__dict__[name]
