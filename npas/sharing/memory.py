"""Compare what a plan needs with the memory of the machine, before any of it is taken."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from npas.sharing.allocation import Allocation
from npas.sharing.budget import count_parameters
from npas.utils.budget import BudgetLike, parse_budget

_DOUBLES = 3  # K x K matrices of fp64 that starting coefficients takes at a time


def refuse_budget(model: nn.Module, budget: BudgetLike | None) -> None:
    """Raise ValueError if the memory of the network's device cannot hold what a budget allows.

    That is the parameters alone: training takes several times as much.
    """
    if budget is not None and not any(map(is_lazy, model.parameters())):  # which are refused anyway
        request = parse_budget(budget)
        allowed = request.allowed(count_parameters(model))
        size = max((p.element_size() for p in model.parameters()), default=4)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        _refuse(request.canonical, f"{allowed:,} parameters", allowed * size, device)


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
