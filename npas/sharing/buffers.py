"""Keep the memory of large, short-lived tensors from one step to the next.

The C library gives large freed blocks back to the system (those above 32 MB always, smaller ones by
what was freed before) and maps them anew, page by page, at the next step; for generated weights and
bank gradients that costs more than computing them. A GPU's caching allocator does this already, so
this is for CPUs alone.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WORTH_KEEPING = 1 << 20
"""Bytes below which mapping memory anew costs little."""

_use_count = getattr(torch._C, "_storage_Use_Count", None)


class BufferPool:
    """Hand out uninitialized tensors over storages that no other tensor refers to any more."""

    def __init__(self) -> None:
        self._storages: dict[tuple[object, int], torch.UntypedStorage] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as an empty pool."""
        return BufferPool, ()

    def empty(self, key: object, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a tensor of `shape` and of the dtype and device of `like`.

        One storage is kept for every `key`; it is used again once every tensor over it is gone.
        """
        size = math.prod(shape) * like.element_size()
        if not like.is_cpu or size < WORTH_KEEPING or _use_count is None:
            return like.new_empty(shape)
        # Taken out while it is looked at: of two threads one finds it.
        storage = self._storages.pop((key, size), None)
        if storage is None or _use_count(storage._cdata) > 1:
            tensor = like.new_empty(shape)
        else:
            tensor = like.new_empty(0).set_(storage).view(tuple(shape))
        self._storages[key, size] = tensor.untyped_storage()
        return tensor

    def clear(self) -> None:
        """Give the kept memory back."""
        self._storages.clear()


def give_back_freed() -> None:
    """Return freed memory to the system, which the GNU C library does not do by itself.

    Between the parameters that stay, a dense network's weights leave holes as large as it was.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
