"""Allocate: size the banks to the parameter, choose every layer's K and place its templates.

The rule is K = min(max_templates, floor(bank / size)); a layer that does not fit is upsampled.
Coefficients cost parameters too, and K jumps with the bank, so a group's bank is found by descent:
give it everything, take off what its coefficients cost, repeat. What the last jump frees goes to
the bank at fixed K, so that a group of two layers or more uses its part to the last parameter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from npas.sharing.allocation import (
    Allocation,
    GroupAllocation,
    LayerAllocation,
    Scheme,
)
from npas.sharing.budget import Budget, BudgetReport, spell_count, split_budget
from npas.sharing.coefficients import GENERATORS, OF_DEPTH, STRUCTURED
from npas.sharing.draft import Draft
from npas.sharing.layers import LayerSpec
from npas.sharing.low_rank import correct, count_corrections
from npas.sharing.schemes import is_foreign
from npas.sharing.structured import SMALLEST_BANK, makes_whole, size_whole, smallest_whole
from npas.sharing.upsample import UPSAMPLERS

WEIGHT_UNIT = 1_000_000
"""What a group's weight of 1 is in the integers that the budget is split by."""


def allocate(
    layers: Sequence[LayerSpec],
    group_of: Mapping[str, str],
    request: Budget,
    dense: int,
    scheme: Scheme,
    group_weights: Mapping[str, float] | None = None,
) -> Allocation:
    """Plan a network of `dense` trainable parameters inside the budget.

    The banks get what the unshared parameters leave, split over the groups in proportion to
    unshared size, times the group's weight (1 unless `group_weights` names it). Raises ValueError
    below the smallest feasible budget, and names it.
    """
    members = members_of(layers, group_of)
    given = group_weights or {}
    unshared = dense - sum(layer.size for group in members.values() for layer in group)
    corrections = count_corrections(members.values(), scheme.low_rank)
    beside = unshared + corrections
    allowed = request.allowed(dense)
    floors = [smallest_group(group, scheme) for group in members.values()]
    floor = beside + sum(floors)
    if allowed < floor:
        raise ValueError(
            f"budget={request.canonical} allows {allowed:,} of {dense:,} parameters, but this"
            f" network needs at least {floor:,} ({unshared:,} unshared,"
            f"{f' {corrections:,} low-rank,' if corrections else ''} {sum(floors):,} for the"
            f" smallest banks): ask for budget={spell_count(floor)} or more"
        )
    sizes = [
        round(sum(layer.size for layer in group) * WEIGHT_UNIT * given.get(name, 1))
        for name, group in members.items()
    ]
    # A group of small layers would get a bank too small for any: it holds its largest layer first,
    # as long as half of the budget can pay for that in all groups alike.
    even = (allowed - beside) // (2 * len(members))
    whole = [
        0 if name in given else min(even, max(layer.size for layer in group))
        for name, group in members.items()
    ]
    raised = [max(pair) for pair in zip(floors, whole, strict=True)]
    floors = raised if sum(raised) <= allowed - beside else floors
    parts = split_budget(allowed - beside, sizes, floors)
    slack = max(allowed // 1000, len(group_of))
    sized = size_groups(members, parts, scheme, slack)
    groups = [correct(group, scheme.low_rank) for group in sized]
    used = unshared + sum(group.used for group in groups)
    assert used <= allowed, (used, allowed)
    if allowed - used > slack and is_foreign(scheme.generator):
        raise ValueError(
            f"generator={scheme.generator!r} can use {used:,} of the {allowed:,} parameters that"
            f" budget={request.canonical} allows, since what it trains beside the bank grows in"
            f" large steps: ask for budget={spell_count(used)}"
        )
    assert not any(group.unread for group in groups)
    budget = BudgetReport(request.canonical, dense, allowed, used)
    return Allocation(scheme, budget, unshared, tuple(groups))


def allocate_templates(
    layers: Sequence[LayerSpec],
    group_of: Mapping[str, str],
    templates: int | str,
    dense: int,
    scheme: Scheme,
) -> Allocation:
    """Plan soft sharing: the layers of a group, all of one shape, mix the same K templates.

    The number of templates fixes the count (Savarese & Maire 2019, SWRN L-w-k); "layers" gives
    every group as many as it has layers (their SWRN L-w). A group of one layer stays an ordinary
    parameter. Raises ValueError where shapes differ within a group.
    """
    groups = []
    for name, group in members_of(layers, group_of).items():
        first = group[0]
        for layer in group:
            if layer.shape != first.shape:
                raise ValueError(
                    f"templates={templates} needs groups of one shape, but group {name!r} holds"
                    f" {first.name} {list(first.shape)} and {layer.name} {list(layer.shape)}: use"
                    " groups='shape' or a mapping"
                )
        if len(group) == 1:
            groups.append(GroupAllocation(name, 0, (LayerAllocation(**vars(first)),)))
            continue
        count = len(group) if isinstance(templates, str) else templates
        positions = tuple(k * first.size for k in range(count))
        reads: dict[str, Any] = {"templates": positions, "template_size": first.size}
        reads["mixing"] = scheme.generator
        planned = tuple(LayerAllocation(**vars(layer), **reads) for layer in group)
        shared = GroupAllocation(name, count * first.size, planned)
        groups.append(correct(shared, scheme.low_rank))
    unshared = dense - sum(layer.size for layer in layers if layer.name in group_of)
    used = unshared + sum(group.used for group in groups)
    asked = "a template a layer" if isinstance(templates, str) else f"{templates} templates"
    asked = "1 template" if templates == 1 else asked
    budget = BudgetReport(asked, dense, used, used)
    return Allocation(scheme, budget, unshared, tuple(groups))


def members_of(
    layers: Sequence[LayerSpec], group_of: Mapping[str, str]
) -> dict[str, list[LayerSpec]]:
    """Return each group's layers, groups in order of first appearance."""
    members: dict[str, list[LayerSpec]] = {}
    for layer in layers:
        if layer.name in group_of:
            members.setdefault(group_of[layer.name], []).append(layer)
    return members


def size_groups(
    members: Mapping[str, Sequence[LayerSpec]],
    parts: Sequence[int],
    scheme: Scheme,
    slack: int,
) -> list[GroupAllocation]:
    """Size every group within its part; what one cannot use goes to another that can.

    Groups of one layer leave a few parameters over, where an ordinary parameter nearly fills the
    part; a group of several takes them. If more than `slack` parameters still stay over, because a
    further coefficient costs more than there is (tiny networks), that group mixes by plain means,
    which cost nothing.
    """
    sized = [
        size_group(name, layers, part, scheme)
        for (name, layers), part in zip(members.items(), parts, strict=True)
    ]
    left = sum(parts) - sum(group.used for group in sized)
    names, totals = list(members), [sum(la.size for la in own) for own in members.values()]
    for i in sorted(range(len(sized)), key=lambda i: (len(sized[i].layers) == 1, -sized[i].used)):
        part = sized[i].used + left
        if makes_whole(scheme.generator):  # which have no use for more
            part = min(part, totals[i])
        before, layers = sized[i].used, members[names[i]]
        if part == before:
            continue
        sized[i] = size_group(names[i], layers, part, scheme)
        if part - sized[i].used > slack and not is_foreign(scheme.generator):
            sized[i] = size_group(names[i], layers, part, replace(scheme, generator="avg"))
        left -= sized[i].used - before
        if left <= slack or not makes_whole(scheme.generator):
            break
    return sized


def size_group(
    name: str, layers: Sequence[LayerSpec], available: int, scheme: Scheme
) -> GroupAllocation:
    """Size one group to use at most `available` parameters, as many as it can."""
    if makes_whole(scheme.generator):
        return size_whole(name, layers, available, scheme.generator)
    if len(layers) == 1 and available >= layers[0].size:
        return _size_single(name, layers[0], available, scheme)
    for most in range(scheme.max_templates, 0, -1):
        draft = _descend(layers, available, most, scheme)
        # Coefficients that eat half the budget of a tiny network are not worth their templates.
        if draft is not None and (draft.mixing_cost * 2 <= available or most == 1):
            break
    if draft is None:  # not even one mixing layer's coefficients fit
        return size_group(name, layers, available, replace(scheme, generator="avg"))
    draft = _fill(draft, available)
    if len(layers) == 1 and draft.maps == 1:  # nobody else reads what its map leaves over
        while math.prod(draft.source(0)) < draft.bank:  # a smaller bank may choose another map
            draft.bank = math.prod(draft.source(0))
    return draft.place(name)


def smallest_group(layers: Sequence[LayerSpec], scheme: Scheme) -> int:
    """Return the fewest parameters with which the group can be planned."""
    if makes_whole(scheme.generator):
        return smallest_whole(layers, scheme.generator)
    sizes = Counter(layer.size for layer in layers)
    bank = min(SMALLEST_BANK, min(sizes))
    upsampler = UPSAMPLERS[scheme.upsampler]

    def used(bank: int) -> int:
        learned = (
            n * math.prod(upsampler.learned(size, bank)) for size, n in sizes.items() if size > bank
        )
        return bank + sum(learned)

    best = used(bank)
    if best > bank:  # learned weights grow as the bank shrinks: find the bank that costs least
        weights = math.prod(upsampler.learned(2 * max(sizes), max(sizes)))
        middle = math.isqrt(weights * sum(size * n for size, n in sizes.items()))
        for size in sizes:
            copies = range(max(1, size // (4 * middle + 1)), size // max(1, middle // 4) + 2)
            candidates = {max(bank, -(-size // m)) for m in copies}
            candidates |= {max(bank, 2 * -(-size // m)) for m in copies}
            best = min(best, *(used(candidate) for candidate in candidates))
    return min(best, layers[0].size) if len(layers) == 1 else best


def choose_templates(
    sizes: Sequence[int], bank: int, most: int, upsampled_span: int, overlap: bool = False
) -> list[int]:
    """Return K for each layer, 0 where it does not fit, such that the bank can be read whole.

    K = min(most, floor(bank / size)), or the ceiling with `overlap`; where that leaves values
    unread, the largest layer that the floor holds back gets one template more (overlapping), and
    failing that `most` grows.
    `upsampled_span` is what the layers that do not fit read.
    """
    while True:
        more = [overlap and 0 < bank % size < bank for size in sizes]
        templates = [min(most, bank // n + one) for n, one in zip(sizes, more, strict=True)]
        read = upsampled_span + sum(k * n for k, n in zip(templates, sizes, strict=True))
        if read >= bank or not any(templates):
            return templates
        held_back = [
            i for i, n in enumerate(sizes) if 0 < templates[i] < most and templates[i] * n < bank
        ]
        if held_back:
            templates[max(held_back, key=lambda i: sizes[i])] += 1
            return templates
        # All that fit have `most`: nothing changes before they read all, or one is held back.
        fitting = [n for k, n in zip(templates, sizes, strict=True) if k]
        enough = -(-(bank - upsampled_span) // sum(fitting))
        most = min(enough, bank // max(fitting) + 1)


def _draft(layers: Sequence[LayerSpec], bank: int, most: int, scheme: Scheme) -> Draft:
    empty = Draft(layers, scheme, bank, [0] * len(layers), [scheme.generator] * len(layers))
    too_large = [i for i, layer in enumerate(layers) if layer.size > bank]
    span = sum(empty.spans[i] for i in too_large[:2])  # two cover any bank
    # Functions of depth make sense of templates that all layers of a shape read.
    overlap = scheme.coefficient_init in OF_DEPTH
    empty.templates = choose_templates([la.size for la in layers], bank, most, span, overlap)
    return empty


def _descend(
    layers: Sequence[LayerSpec], available: int, most: int, scheme: Scheme
) -> Draft | None:
    """Find a bank that fits with its costs by descent; None if no bank is left."""
    bank = available
    while bank >= min(SMALLEST_BANK, min(layer.size for layer in layers)):
        draft = _draft(layers, bank, most, scheme)
        if bank + draft.cost <= available:
            return draft
        bank = available - draft.cost
    return None


def _fill(draft: Draft, available: int) -> Draft:
    """Give the bank what is left at fixed K; ends when nothing is left or nothing more fits."""
    for _ in range(8):
        left = available - draft.bank - draft.cost
        if not left:
            break
        bank = draft.bank + left
        templates = [
            k or int(layer.size <= bank)
            for k, layer in zip(draft.templates, draft.layers, strict=True)
        ]
        larger = Draft(draft.layers, draft.scheme, bank, templates, list(draft.mixing))
        if sum(larger.spans) < bank:
            fitting = [i for i, k in enumerate(templates) if k]
            i = max(fitting, key=lambda i: draft.layers[i].size)
            templates[i] += 1
            if templates[i] == 2:  # no parameters are left for coefficients
                larger.mixing[i] = "avg"
        if larger.bank + larger.cost > available or sum(larger.spans) < bank:
            break
        draft = larger
    return draft


def _size_single(name: str, layer: LayerSpec, available: int, scheme: Scheme) -> GroupAllocation:
    """Size a group of one layer that its part covers: ordinary, or mixing when there is more."""
    generator = "wavg" if scheme.generator in STRUCTURED else scheme.generator
    templates = -(-available // layer.size)
    bank = available - GENERATORS[generator].count([templates])
    while templates > 2 and layer.size < bank < layer.size + templates - 1:  # no room for so many
        templates -= 1
        bank = available - GENERATORS[generator].count([templates])
    if templates == 1 or bank <= layer.size:
        return GroupAllocation(name, 0, (LayerAllocation(**vars(layer)),))
    return Draft([layer], scheme, bank, [templates], [generator]).place(name)
