"""Plan an `Allocation`: bank sizes, exact to the parameter, and each layer's K and templates.

K = min(max_templates, floor(bank / size)); a layer larger than its bank is upsampled. Coefficients
cost parameters, and K depends on the bank, so a group's bank is found by descent: start with the
whole budget, subtract the coefficients' cost, repeat. What is left over then extends the bank at
fixed K, so that a group of two or more layers uses its budget to the last parameter.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from npas.sharing.budget import Budget, BudgetReport, spell_count, split_budget
from npas.sharing.generators.coefficients import GENERATORS, OF_DEPTH, STRUCTURED
from npas.sharing.generators.low_rank import correct, count_corrections
from npas.sharing.generators.schemes import is_foreign
from npas.sharing.generators.upsample import UPSAMPLERS
from npas.sharing.layers import LayerSpec
from npas.sharing.layout.allocation import Allocation, GroupAllocation, LayerAllocation, Scheme
from npas.sharing.layout.draft import Draft
from npas.sharing.layout.structured import SMALLEST_BANK, makes_whole, size_whole, smallest_whole

WEIGHT_UNIT = 1_000_000
"""The integer that stands for a group weight of 1 when the budget is split."""


def allocate(
    layers: Sequence[LayerSpec],
    group_of: Mapping[str, str],
    request: Budget,
    dense: int,
    scheme: Scheme,
    group_weights: Mapping[str, float] | None = None,
) -> Allocation:
    """Return the allocation for a network of `dense` trainable parameters inside the budget.

    What unshared parameters and corrections leave is split over the groups in proportion to their
    dense size times their weight in `group_weights` (default 1). Raises ValueError below the
    smallest feasible budget, and names it.
    """
    members = members_of(layers, group_of)
    given = group_weights or {}
    unshared = dense - sum(layer.size for group in members.values() for layer in group)
    corrections = count_corrections(members.values(), scheme.low_rank)
    fixed = unshared + corrections
    allowed = request.allowed(dense)
    floors = [smallest_group(group, scheme) for group in members.values()]
    floor = fixed + sum(floors)
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
    # A group of small layers would get too small a bank. So each bank is first as large as its
    # group's largest layer, as far as an equal split of half the budget allows.
    even = (allowed - fixed) // (2 * len(members))
    largest = [
        0 if name in given else min(even, max(layer.size for layer in group))
        for name, group in members.items()
    ]
    raised = [max(pair) for pair in zip(floors, largest, strict=True)]
    floors = raised if sum(raised) <= allowed - fixed else floors
    parts = split_budget(allowed - fixed, sizes, floors)
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
    """Return the allocation of soft sharing: a group's layers, of one shape, mix K templates.

    K = `templates` fixes the parameter count (Savarese & Maire 2019, SWRN L-w-k); "layers" sets K
    to the group's number of layers (SWRN L-w). A group of one layer stays an ordinary parameter.
    Raises ValueError if shapes differ within a group.
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
    """Return the layers of each group; groups are in order of first appearance."""
    members: dict[str, list[LayerSpec]] = {}
    for layer in layers:
        if layer.name in group_of:
            members.setdefault(group_of[layer.name], []).append(layer)
    return members


def size_groups(
    members: Mapping[str, Sequence[LayerSpec]], parts: Sequence[int], scheme: Scheme, slack: int
) -> list[GroupAllocation]:
    """Size each group within its part of the budget; give unused parameters to another group.

    A group of one layer leaves a few parameters over when it stays an ordinary parameter; a larger
    group takes them. If more than `slack` are still unused, because one more coefficient does not
    fit (tiny networks), that group mixes by `avg`, which has no coefficients.
    """
    names, totals = list(members), [sum(la.size for la in own) for own in members.values()]
    whole, available = makes_whole(scheme.generator), sum(parts)
    if whole and available <= sum(totals):  # these cannot use more than the dense size
        parts = [min(pair) for pair in zip(parts, totals, strict=True)]
    sized = [
        size_group(name, layers, part, scheme)
        for (name, layers), part in zip(members.items(), parts, strict=True)
    ]
    left = available - sum(group.used for group in sized)
    for i in sorted(range(len(sized)), key=lambda i: (len(sized[i].layers) == 1, -sized[i].used)):
        part = sized[i].used + left
        part = min(part, totals[i]) if whole else part
        before, layers = sized[i].used, members[names[i]]
        if part == before:
            continue
        sized[i] = size_group(names[i], layers, part, scheme)
        if part - sized[i].used > slack and not is_foreign(scheme.generator):
            sized[i] = size_group(names[i], layers, part, replace(scheme, generator="avg"))
        left -= sized[i].used - before
        if left <= slack or not whole:
            break
    return sized


def size_group(
    name: str, layers: Sequence[LayerSpec], available: int, scheme: Scheme
) -> GroupAllocation:
    """Plan one group that uses as many of the `available` parameters as possible."""
    if makes_whole(scheme.generator):
        return size_whole(name, layers, available, scheme.generator)
    if len(layers) == 1 and available >= layers[0].size:
        return _size_single(name, layers[0], available, scheme)
    most = min(scheme.max_templates, 1 + available // min(layer.size for layer in layers))
    while most > 0:
        draft = _descend(layers, available, most, scheme)
        # In a tiny network coefficients could take more than half the budget: use fewer templates.
        if draft is not None and (draft.mixing_cost * 2 <= available or most == 1):
            break
        most -= max(1, most // 64)
    if draft is None:  # no layer's coefficients fit
        return size_group(name, layers, available, replace(scheme, generator="avg"))
    draft = _fill(draft, available)
    if len(layers) == 1 and draft.maps == 1:  # no other layer reads the rest of the bank
        while math.prod(draft.source(0)) < draft.bank:  # a smaller bank may have another map
            draft.bank = math.prod(draft.source(0))
    placed = draft.place(name)
    while draft.maps > 1 and placed.unread:  # a few values between two maps of half the bank
        draft.bank -= placed.unread
        placed = draft.place(name)
    return placed


def smallest_group(layers: Sequence[LayerSpec], scheme: Scheme) -> int:
    """Return the fewest parameters that a group can have."""
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
    if best > bank:  # upsamplers' weights grow as the bank shrinks: find the cheapest bank
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
    """Return K for each layer, 0 if it is larger than the bank, such that no value stays unread.

    K = min(most, floor(bank / size)), or the ceiling with `overlap`. If values stay unread, the
    largest layer whose K was rounded down gets one more, overlapping template; without such a
    layer `most` grows. `upsampled_span` is the number of values that upsampled layers read.
    """
    while True:
        more = [overlap and 0 < bank % size < bank for size in sizes]
        templates = [min(most, bank // n + one) for n, one in zip(sizes, more, strict=True)]
        read = upsampled_span + sum(k * n for k, n in zip(templates, sizes, strict=True))
        if read >= bank or not any(templates):
            return templates
        rounded = [
            i for i, n in enumerate(sizes) if 0 < templates[i] < most and n * templates[i] < bank
        ]
        if rounded:
            templates[max(rounded, key=lambda i: sizes[i])] += 1
            return templates
        # All that fit have K = most: raise it until they read all, or until one is rounded down.
        fitting = [n for k, n in zip(templates, sizes, strict=True) if k]
        enough = -(-(bank - upsampled_span) // sum(fitting))
        most = min(enough, bank // max(fitting) + 1)


def _draft(layers: Sequence[LayerSpec], bank: int, most: int, scheme: Scheme) -> Draft:
    empty = Draft(layers, scheme, bank, [0] * len(layers), [scheme.generator] * len(layers))
    too_large = [i for i, layer in enumerate(layers) if layer.size > bank]
    span = sum(empty.spans[i] for i in too_large[:2])  # two of them cover any bank
    # Functions of depth need templates that all layers of a shape read.
    overlap = scheme.coefficient_init in OF_DEPTH
    empty.templates = choose_templates([la.size for la in layers], bank, most, span, overlap)
    return empty


def _descend(
    layers: Sequence[LayerSpec], available: int, most: int, scheme: Scheme
) -> Draft | None:
    """Return a draft whose bank and coefficients fit `available`, or None."""
    bank = available
    while bank >= min(SMALLEST_BANK, min(layer.size for layer in layers)):
        draft = _draft(layers, bank, most, scheme)
        if bank + draft.cost <= available:
            return draft
        bank = available - draft.cost
    return None


def _fill(draft: Draft, available: int) -> Draft:
    """Return the draft with its bank extended, at fixed K, to use what is left of `available`."""
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
            if templates[i] == 2:  # nothing is left for coefficients
                larger.mixing[i] = "avg"
        if larger.bank + larger.cost > available or sum(larger.spans) < bank:
            break
        draft = larger
    return draft


def _size_single(name: str, layer: LayerSpec, available: int, scheme: Scheme) -> GroupAllocation:
    """Plan a group of one layer of at most `available` size: ordinary parameter or mixture."""
    generator = "wavg" if scheme.generator in STRUCTURED else scheme.generator
    templates = -(-available // layer.size)
    bank = available - GENERATORS[generator].count([templates])
    while templates > 2 and layer.size < bank < layer.size + templates - 1:  # positions must differ
        templates -= 1
        bank = available - GENERATORS[generator].count([templates])
    if templates == 1 or bank <= layer.size:
        return GroupAllocation(name, 0, (LayerAllocation(**vars(layer)),))
    return Draft([layer], scheme, bank, [templates], [generator]).place(name)
