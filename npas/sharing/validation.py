"""Check an allocation that was read from a file before any of it is used.

`npas.utils.json_data` checks fields and types. Here are the rules between fields, as tables:
every position lies in its bank, every name is known and every count adds up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from npas.sharing.bases import BASES, is_basis
from npas.sharing.coefficients import GENERATORS, STARTS
from npas.sharing.upsample import UPSAMPLERS, WINDOW
from npas.utils.json_data import shown

if TYPE_CHECKING:
    from npas.sharing.allocation import Allocation, GroupAllocation, LayerAllocation

ALLOCATORS = ("npas", "reference")
NOTHING = (0, 0)
NAMES: dict[str, Sequence[str]] = {
    "generator": tuple(GENERATORS),
    "upsampler": tuple(UPSAMPLERS),
    "allocator": ALLOCATORS,
    "coefficient_init": tuple(STARTS),
}
"""The fields of a scheme that name something, with the names there are."""

_MIXINGS = ("none", *GENERATORS)

Rule = tuple[str, Callable[["LayerAllocation", int], bool]]

_ALL: tuple[Rule, ...] = (
    ("shape must have whole numbers above 0", lambda la, _: min(la.shape, default=0) > 0),
    ("scale must not be negative", lambda la, _: la.scale >= 0),
    (f"mixing must be none, {', '.join(GENERATORS)}", lambda la, _: la.mixing in _MIXINGS),
    (
        f"upsampler must be null, {', '.join((*UPSAMPLERS, *BASES))}",
        lambda la, _: la.upsampler in (None, *UPSAMPLERS, *BASES),
    ),
)
_ORDINARY: tuple[Rule, ...] = (
    (
        "it must have no templates, source or upsampler, since its group has no bank",
        lambda la, _: (
            not la.templates
            and not la.template_size
            and la.mixing == "none"
            and la.upsampler is None
            and la.source == la.learned == NOTHING
            and not la.kept
        ),
    ),
)
_BANKED: tuple[Rule, ...] = (
    ("templates must name one position or more", lambda la, _: len(la.templates) > 0),
    (
        "template_size must be above 0 and within the bank",
        lambda la, bank: 0 < la.template_size <= bank,
    ),
    (
        "templates must lie in the bank, between 0 and bank - template_size",
        lambda la, bank: min(la.templates) >= 0 and max(la.templates) <= bank - la.template_size,
    ),
    (
        "templates must go from low to high",
        lambda la, _: list(la.templates) == sorted(la.templates),
    ),
    ("templates are more than its bank can hold", lambda la, bank: _can_hold(la, bank)),
    ("mixing=none takes one template", lambda la, _: la.mixing != "none" or len(la.templates) == 1),
    ("source must be what its upsampler reads", lambda la, _: la.source == _source(la)),
    (
        "template_size must be its weight's size, since nothing upsamples it",
        lambda la, _: la.upsampler is not None or la.template_size == la.size,
    ),
    ("learned must be the shape that its upsampler needs", lambda la, _: _learns_enough(la)),
)


def check_allocation(
    plan: Allocation, split: Mapping[str, int], unread: int, utilization: float
) -> None:
    """Raise ValueError, naming the field, unless a stored plan holds together.

    `split`, `unread` and `utilization` are what the file says that they come to.
    """
    for field, known in NAMES.items():
        if (name := getattr(plan.scheme, field)) not in known:
            raise ValueError(f"scheme.{field} must be {', '.join(known)}, not {shown(name)}")
    if plan.scheme.max_templates < 1:
        raise ValueError(f"scheme.max_templates must be above 0, not {plan.scheme.max_templates}")
    for group in plan.groups:
        if group.bank < 0 or not group.layers:
            raise ValueError(f"group {shown(group.name)} must have layers and no negative bank")
        for layer in group.layers:
            _check_layer(layer, group)
    names = [layer.name for layer in plan.layers]
    if len(set(names)) < len(names) or not names:
        raise ValueError("layers must be one or more, each of a name of its own")
    if plan.unshared < 0:
        raise ValueError(f"unshared must not be negative, not {plan.unshared}")
    budget, weights = plan.budget, sum(layer.size for layer in plan.layers)
    used = plan.unshared + sum(group.used for group in plan.groups)
    counts: tuple[tuple[str, object, object], ...] = (
        ("budget.used", budget.used, used),
        ("budget.dense", budget.dense, plan.unshared + weights),
        ("split", dict(split), plan.split),
        ("unread", unread, plan.unread),
    )
    for field, stored, counted in counts:
        if stored != counted:
            raise ValueError(
                f"{field} must be {counted}, which its layers add up to, not {shown(stored)}"
            )
    if budget.allowed < 1:  # more than that may be used: parts were replaced after sharing
        raise ValueError(f"budget.allowed must be above 0, not {budget.allowed}")
    if not math.isclose(utilization, budget.utilization, abs_tol=1e-6):
        raise ValueError(f"budget.utilization must be used / allowed, not {utilization}")


def _check_layer(layer: LayerAllocation, group: GroupAllocation) -> None:
    for text, holds in (*_ALL, *(_BANKED if group.bank else _ORDINARY)):
        if not holds(layer, group.bank):
            raise ValueError(f"layer {shown(layer.name)}: {text}")


def _can_hold(layer: LayerAllocation, bank: int) -> bool:
    """Return whether the allocator could place so many: the last may be paid by coefficients."""
    count = len(layer.templates)
    paid = 0 if layer.mixing == "none" else GENERATORS[layer.mixing].count([count])
    return (count - 1) * layer.template_size < bank + paid


def _source(layer: LayerAllocation) -> tuple[int, int]:
    """Return the matrix that the layer's upsampler must read; (0, 0) without one."""
    if layer.upsampler is None:
        return NOTHING
    if layer.upsampler != "inter":
        return 1, layer.template_size
    rows, columns = layer.source
    fits = rows > 0 and columns > 0 and rows * columns == layer.template_size
    return layer.source if fits else (1, layer.template_size)


def _learns_enough(layer: LayerAllocation) -> bool:
    """Return whether what the upsampler has learned makes as many values as the weight has."""
    rows, columns = layer.learned
    if layer.upsampler in BASES:
        return is_basis(layer)
    if layer.kept:
        return False
    if layer.upsampler == "mask":
        return columns == WINDOW and rows > 0 and layer.template_size * (1 + rows) >= layer.size
    if layer.upsampler == "wavg":
        return columns == 2 and rows > 0 and -(-layer.template_size // 2) * rows >= layer.size
    return layer.learned == NOTHING
