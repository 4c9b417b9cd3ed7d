"""Assign layers to groups; the layers of a group share one bank."""

import random
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral

from npas.sharing.blocks import parts_by_depth, place_of
from npas.sharing.layers import LayerSpec, match_names
from npas.utils.checks import require

GROUPINGS = ("single", "type", "shape", "random", "place")
BY_DEPTH = re.compile(r"depth:(\d{1,4})")
FOUND_BY_TRAINING = ("learned", "gradient")


def assign_groups(
    layers: Sequence[LayerSpec],
    groups: str | Mapping[str, str | int],
    num_groups: int | None = None,
    seed: int = 0,
) -> dict[str, str]:
    """Return a dict from layer name to group name, in the order of `layers`.

    `groups` is one of:
    - "single": one group;
    - "type": one group per layer type; "shape": one per layer type and shape;
    - "place": one per shape and name, where numbers in names are ignored;
    - "depth:n": n groups of consecutive numbered blocks, as equal as possible;
    - "random": `num_groups` groups of equal length, drawn from `seed`;
    - a mapping of glob patterns to groups: the first match counts; the rest stays unshared.

    Raises ValueError for an unknown grouping, a pattern that matches nothing, and a `num_groups`
    that is missing, out of range or unused.
    """
    if isinstance(groups, Mapping):
        if num_groups is not None:
            raise ValueError(f"num_groups={num_groups} has no use with a mapping: leave it out")
        return _manual(layers, groups)
    if groups in FOUND_BY_TRAINING:
        raise ValueError(
            f"groups={groups!r} needs a training run: run npas-train sharing.groups={groups}, then"
            " pass the groups of its groups.json: groups={layer['name']: layer['group'] for layer"
            " in json.load(file)['layers']}"
        )
    by_depth = BY_DEPTH.fullmatch(groups)
    if groups not in GROUPINGS and by_depth is None:
        raise ValueError(
            f"groups={groups!r} is unknown: choose {', '.join(GROUPINGS)}, depth:2 or a mapping of"
            " patterns to groups"
        )
    if groups == "random":
        return _random(layers, num_groups, seed)
    if num_groups is not None:
        raise ValueError(f"num_groups={num_groups} has no use with groups={groups!r}: leave it out")
    if by_depth is not None:
        parts = parts_by_depth([layer.name for layer in layers], int(by_depth[1]))
        return {name: f"depth{part}" for name, part in parts.items()}
    if groups == "place":
        return {la.name: f"{place_of(la.name)} {'x'.join(map(str, la.shape))}" for la in layers}
    if groups == "single":
        return {layer.name: "all" for layer in layers}
    if groups == "type":
        return {layer.name: layer.kind for layer in layers}
    return {layer.name: f"{layer.kind} {'x'.join(map(str, layer.shape))}" for layer in layers}


def _random(layers: Sequence[LayerSpec], num_groups: int | None, seed: int) -> dict[str, str]:
    if num_groups is None or not 1 <= num_groups <= len(layers):
        raise ValueError(
            f"num_groups={num_groups} is out of range: the network has {len(layers)} shareable"
            f" layers, so choose 1 to {len(layers)}"
        )
    order = list(range(len(layers)))
    random.Random(seed).shuffle(order)
    drawn = {layers[i].name: f"random{position % num_groups}" for position, i in enumerate(order)}
    return {layer.name: drawn[layer.name] for layer in layers}


def _manual(layers: Sequence[LayerSpec], patterns: Mapping[str, str | int]) -> dict[str, str]:
    if not patterns:
        raise ValueError("groups is an empty mapping: map at least one pattern to a group")
    for pattern, group in patterns.items():
        require("groups' pattern", pattern, str, "a string")
        require(f"groups[{pattern!r}]", group, (str, Integral), "a string or an integer")
    match_names([layer.name for layer in layers], patterns, "groups", "shareable layer")
    found: dict[str, str] = {}
    for pattern, group in reversed([*patterns.items()]):  # the first match counts
        found |= {la.name: str(group) for la in layers if fnmatchcase(la.name, pattern)}
    return {la.name: found[la.name] for la in layers if la.name in found}
