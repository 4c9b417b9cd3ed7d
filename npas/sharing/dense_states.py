"""Say what to do with the state dict of a dense network that a shared one is given to load."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from npas.sharing.names import PREFIX


def watch_loading(root: nn.Module) -> None:
    """Have `load_state_dict` say that dense weights are projected, not loaded."""
    root.register_load_state_dict_pre_hook(_refuse_dense)


def unwatch_loading(root: nn.Module) -> None:
    """Take the hook away."""
    for key, hook in list(root._load_state_dict_pre_hooks.items()):
        if getattr(hook, "hook", None) is _refuse_dense:
            del root._load_state_dict_pre_hooks[key]


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
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "load_state_dict":
        level, frame = level + 1, frame.f_back
    if frame.f_locals.get("strict", True):
        errors = others[-1]
        errors.append(reason)
    else:
        warnings.warn(f"{reason}; the banks stay as they are", stacklevel=level + 1)
