"""Allocate as the released SSN code does, for comparison (`allocator="reference"`).

The budget limits only the banks. A layer's K templates are one block of the bank; blocks of one
size lie on a grid. Parts of a bank that no block covers are never read (the plan prints them).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from npas.sharing.budget import Budget, BudgetReport
from npas.sharing.generators.upsample import UPSAMPLERS, WINDOW
from npas.sharing.layers import LayerSpec
from npas.sharing.layout.allocation import Allocation, GroupAllocation, LayerAllocation, Scheme
from npas.sharing.layout.allocator import members_of

_TRIM = {"repeat": WINDOW, "mask": WINDOW, "wavg": 2}


def allocate_reference(
    layers: Sequence[LayerSpec],
    group_of: Mapping[str, str],
    request: Budget,
    dense: int,
    scheme: Scheme,
    wrap_after_k: bool,
) -> Allocation:
    """Return the released code's allocation; `wrap_after_k` for groups by type or shape.

    Layers alone in their group stay as large as they are. Raises ValueError if they leave no budget
    for the other groups.
    """
    bank_budget = request.allowed(dense)
    members = members_of(layers, group_of)
    alone = sum(group[0].size for group in members.values() if len(group) == 1)
    shared = sum(layer.size for group in members.values() if len(group) > 1 for layer in group)
    left = bank_budget - alone
    if shared and left <= 0:
        raise ValueError(
            f"allocator='reference' keeps layers that are alone in their group ({alone:,} weights);"
            f" budget={request.canonical} allows {bank_budget:,}: ask for more, or groups='single'"
        )
    groups = []
    for name, group in members.items():
        if len(group) == 1:
            groups.append(GroupAllocation(name, 0, (LayerAllocation(**vars(group[0])),)))
            continue
        bank = round(left * sum(layer.size for layer in group) / shared)
        groups.append(GroupAllocation(name, bank, _place(group, bank, scheme, wrap_after_k)))
    unshared = dense - alone - shared
    used = unshared + sum(group.used for group in groups)
    return Allocation(
        scheme, BudgetReport(request.canonical, dense, bank_budget, used), unshared, tuple(groups)
    )


def _place(
    group: Sequence[LayerSpec], bank: int, scheme: Scheme, wrap_after_k: bool
) -> tuple[LayerAllocation, ...]:
    """Return the layers with template positions; the most common shape is placed first."""
    if bank < 1:
        raise ValueError(
            "allocator='reference' leaves a group no bank at this budget: ask for more"
        )
    common = Counter(layer.shape for layer in group)
    first = {shape: i for i, shape in enumerate(common)}
    cursor: dict[int, int] = {}
    wrap: dict[int, int] = {}
    reserved = 0
    placed: dict[str, LayerAllocation] = {}
    for layer in sorted(group, key=lambda layer: (-common[layer.shape], first[layer.shape])):
        templates = min(max(1, bank // layer.size), scheme.max_templates)
        upsampled = templates * layer.size > bank
        source = _source(layer, bank, scheme) if upsampled else (0, 0)
        size = math.prod(source) if upsampled else layer.size
        learned = UPSAMPLERS[scheme.upsampler].learned(layer.size, bank)
        if scheme.upsampler == "wavg":
            learned = 2 * -(-layer.size // bank), 2
        block = templates * (size if scheme.upsampler == "inter" else layer.size)
        if block not in cursor:
            at = -(-reserved // block)
            if at >= templates:
                reserved = at = 0
            else:
                reserved += block
            cursor[block], wrap[block] = at, templates
        if (cursor[block] + 1) * block > bank:
            cursor[block] = 0
        start = cursor[block] * block
        cursor[block] += 1
        if wrap_after_k and cursor[block] == wrap[block]:
            cursor[block] = 0
        placed[layer.name] = LayerAllocation(
            **vars(layer),
            templates=tuple(start + k * size for k in range(templates)),
            template_size=size,
            mixing=scheme.generator if templates > 1 else "none",
            upsampler=scheme.upsampler if upsampled else None,
            source=source,
            learned=learned if upsampled else (0, 0),
        )
    return tuple(placed[layer.name] for layer in group)


def _source(layer: LayerSpec, bank: int, scheme: Scheme) -> tuple[int, int]:
    """Return the source map's rows and columns, or 1 and the trimmed bank's size.

    The map of `inter` has both channel counts reduced by the same share.
    """
    if scheme.upsampler != "inter":
        trimmed = bank - bank % _TRIM[scheme.upsampler]
        if trimmed * -(-layer.size // bank) < layer.size:
            raise ValueError(
                f"allocator='reference' trims the bank to {trimmed:,}, too short for {layer.name}"
                " at this budget: ask for a slightly different budget"
            )
        return 1, trimmed
    out, rest = layer.shape[0], layer.shape[1:]
    share = 0.95
    while True:
        rows = round(out * share)
        columns = round(rest[0] * share) * math.prod(rest[1:])
        if rows * columns <= bank:
            break
        share -= 0.05
    if not rows * columns:
        raise ValueError(f"allocator='reference' cannot shrink {layer.name} to a bank of {bank:,}")
    return rows, columns
