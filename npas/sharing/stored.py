"""Check a stored allocation against its tensors and the network to be shared."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from npas.sharing import storage
from npas.sharing.allocation import Allocation, GroupAllocation
from npas.sharing.coefficients import GENERATORS
from npas.sharing.init import generator_rows
from npas.sharing.layers import PREFIX, SCALES, bank_name, generator_name, upsampler_name
from npas.sharing.low_rank import factor_shapes


def read_plan(data: object, path: Path) -> Allocation:
    """Return the allocation that a file holds; ValueError, naming the file, if it is none."""
    try:
        return Allocation.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tensors(plan: Allocation, stored: storage.Stored, model: nn.Module) -> None:
    """Raise ValueError unless the stored tensors have the shapes of the plan's.

    So no plan, however large, takes more memory than its file. Nor can a network without values be
    filled.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("the network lies on the meta device, without values: build it on the CPU")
    for name, shape in shared_shapes(plan).items():
        storage.check_tensor(stored, name, shape)


def check_unshared(plan: Allocation, stored: storage.Stored, model: nn.Module) -> None:
    """Raise ValueError if a network that was just shared has fewer other parameters than planned.

    It may have more: those that were frozen when it was shared did not count.
    """
    own = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(PREFIX))
    others = own - sum(group.ordinary for group in plan.groups)
    if plan.unshared > others:
        raise ValueError(
            f"{stored.directory} was written by another architecture: it has {plan.unshared:,}"
            f" parameters that are not shared, and the network has {others:,}"
        )


def shared_shapes(allocation: Allocation) -> dict[str, tuple[int, ...]]:
    """Return the shapes, by name, of all tensors that `install` puts on the root."""
    found: dict[str, tuple[int, ...]] = {}
    index = 0
    for g, group in enumerate(allocation.groups):
        found |= group_shapes(g, group, index) if group.bank else {}
        index += len(group.layers)
    return found | {SCALES: (1 + max(layer.scale for layer in allocation.layers),)}


def group_shapes(g: int, group: GroupAllocation, first: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a group's tensors; `first` is the place of its first layer."""
    shapes: dict[str, tuple[int, ...]] = {bank_name(g): (group.bank,)}
    for (mixing, templates), places in generator_rows(group).items():
        for kind, shape in GENERATORS[mixing].shapes(len(places), templates).items():
            shapes[generator_name(kind, g, templates)] = shape
    for place, layer in enumerate(group.layers):
        if layer.learned[0]:
            shapes[upsampler_name(first + place)] = layer.learned
        shapes |= factor_shapes(first + place, layer)
    return shapes
