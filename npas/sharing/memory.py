"""Keep the memory of large, short-lived tensors from one step to the next.

The C library gives large freed blocks back to the system (those above 32 MB always, smaller ones by
what was freed before) and maps them again, page by page, at the next step; for generated weights
and bank gradients that costs more than computing them. A GPU's caching allocator does this
already, so this is for CPUs alone.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from npas.sharing.allocation import Allocation
from npas.sharing.budget import count_parameters
from npas.sharing.torch_private import is_shared_storage
from npas.utils.budget import Budget

WORTH_KEEPING = 1 << 20
"""Bytes below which mapping memory again costs little."""


class BufferPool:
    """Uninitialized tensors over kept storages that no other tensor uses any more."""

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
        if not like.is_cpu or size < WORTH_KEEPING:
            return like.new_empty(shape)
        # Taken out while it is looked at: of two threads one finds it.
        storage = self._storages.pop((key, size), None)
        if storage is None or is_shared_storage(storage):
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


_DOUBLES = 3  # K x K matrices of fp64 that starting coefficients takes at a time


def refuse_budget(model: nn.Module, budget: Budget) -> None:
    """Raise ValueError if the memory of the network's device cannot hold what a budget allows.

    That is the parameters alone: training takes several times as much.
    """
    if not any(map(is_lazy, model.parameters())):  # which are refused anyway
        # Of bytes about as many parameters as bytes.
        allowed = budget.size or budget.allowed(count_parameters(model))
        size = max((p.element_size() for p in model.parameters()), default=4)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        _refuse(budget.canonical, f"{allowed:,} parameters", allowed * size, device)


def refuse_plan(plan: Allocation) -> None:
    """Raise ValueError if the memory cannot hold what starting the coefficients takes."""
    if plan.scheme.generator != "avg":
        most = max(len(layer.templates) for layer in plan.layers)
        needed = _DOUBLES * 8 * most**2
        _refuse(plan.budget.asked, f"{most:,} templates a layer", needed, torch.device("cpu"))


def _refuse(asked: str, what: str, needed: int, device: torch.device) -> None:
    there = free_bytes(device)
    if there is not None and needed > there:
        raise ValueError(
            f"budget={asked} comes to {what}, which take {needed / 2**30:,.1f} GiB to make, and the"
            f" {device.type} has {there / 2**30:,.1f} GiB: ask for a smaller budget"
        )


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that a device has left, a GPU's whole; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {
            name: int(rest.split()[0]) for name, _, rest in (la.partition(":") for la in lines)
        }
        return 1024 * (sizes["MemAvailable"] + sizes["SwapFree"])
    except (OSError, KeyError, ValueError, IndexError):  # not Linux
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
