"""The private functions of torch and of Python's frames that npas uses.

`tests/sharing/test_torch_private.py` fails when a torch release changes one.
"""

import sys
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode

_FAKE, _PROXY = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY
_OURS = ("npas.", "torch.nn.modules.module")
_CALL = nn.Module._wrapped_call_impl.__code__
_storage_use_count = getattr(torch._C, "_storage_Use_Count", None)

backward_pass = torch._C._current_graph_task_id
"""Return the id of the backward pass running on this thread, or -1."""

will_execute = torch._C._will_engine_execute_node
"""Return whether the running backward pass will execute a node of the graph."""


def is_shared_storage(storage: torch.UntypedStorage) -> bool:
    """Return whether a tensor uses the storage; True if this torch cannot tell."""
    return _storage_use_count is None or _storage_use_count(storage._cdata) > 1


def has_saved_tensors_hooks() -> bool:
    """Return whether `saved_tensors_hooks` are active, e.g. activation checkpointing's."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def is_traced() -> bool:
    """Return whether a compiler, a function transform or a trace is running.

    That is `torch.compile`, `torch.export`, `torch.func`, forward-mode differentiation,
    `torch.jit.trace`, `make_fx` or fake tensors. They do not support autograd functions that write
    to their own buffers, and tensors computed under them must not be cached.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch._C._get_dispatch_mode(_FAKE) is not None
        or torch._C._get_dispatch_mode(_PROXY) is not None
    )


def hidden_from_checkpoints() -> AbstractContextManager[object]:
    """Return a context in which selective activation checkpointing ignores operations.

    A weight may be generated inside a checkpoint or before it; the results must be equal.
    """
    selective = (_CachingTorchDispatchMode, _CachedTorchDispatchMode)
    if any(isinstance(mode, selective) for mode in _get_current_dispatch_mode_stack()):
        hidden: AbstractContextManager[object] = _disable_current_modes()
        return hidden
    return nullcontext()


caller: Any = sys._getframe
"""`caller(1)` returns the frame of the current function's caller; fast enough for hot paths."""


def is_executing(frame: FrameType) -> bool:
    """Return whether a frame still executes; a finished one is cleared of its local variables."""
    try:
        frame.clear()
    except RuntimeError:
        return True
    return False


def outermost_call(modules: Collection[nn.Module]) -> tuple[FrameType, nn.Module] | None:
    """Return the outermost frame on the stack that calls one of `modules`, and that module."""
    found, frame = None, caller(1)
    while frame is not None:
        if frame.f_code is _CALL and frame.f_locals["self"] in modules:
            found = frame, frame.f_locals["self"]
        frame = frame.f_back
    return found


def level_outside() -> int:
    """Return the `stacklevel` at which a warning points to the user's line that called npas."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level
