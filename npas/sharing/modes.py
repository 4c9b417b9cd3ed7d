"""Tell when weights must be made by plain operations that something else can follow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode

_TRACERS = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


def needs_plain_operations() -> bool:
    """Tell whether a compiler, a transform or a trace is running.

    They cannot see through an autograd function that writes to memory of its own, and nothing they
    make may be kept: `torch.compile`, `torch.export`, `torch.func`, forward-mode differentiation,
    `torch.jit.trace`, `make_fx` and fake tensors.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)
    )


def unseen_by_checkpoints() -> AbstractContextManager[object]:
    """Hide from selective checkpoints, which expect the same operations when they run again.

    Whether a weight is generated inside a checkpoint or was before must make no difference.
    """
    selective = (_CachingTorchDispatchMode, _CachedTorchDispatchMode)
    if any(isinstance(mode, selective) for mode in _get_current_dispatch_mode_stack()):
        hidden: AbstractContextManager[object] = _disable_current_modes()
        return hidden
    return nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
