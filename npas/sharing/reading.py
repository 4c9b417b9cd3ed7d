"""Find out which layers can be generated together, from the allocation alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from npas.sharing.allocation import Allocation, LayerAllocation
from npas.sharing.generators import GENERATORS

LARGEST_BLOCK = 1 << 22
LARGEST_PART = 1 / 16
"""Weights of a block, whose gradients wait for each other: a larger block reads its templates less
often, and takes more memory. At most the first or, where it is more, this part of the network."""


@dataclass(frozen=True)
class Rows:
    """Name the layers whose coefficients come from one parameter: one generator, one K."""

    mixing: str
    templates: int
    layers: list[int]


class Reading:
    """Say who reads what with whom; layers are places in `Allocation.layers`.

    `places`: group and plan of each layer. `twins`: for each layer the first whose weight is
    identical; `common`: those firsts that have others. `rows`: for each mixing layer those it
    shares a parameter of coefficients with. `blocks`: for each layer that is generated those that
    read the same templates with it. Layers in `low` compute in autocast's dtype, and are generated
    apart from the others.
    """

    def __init__(self, allocation: Allocation, low: Collection[int] = ()) -> None:
        self.places = [
            (g, layer) for g, group in enumerate(allocation.groups) for layer in group.layers
        ]
        self.low = frozenset(low)
        self.twins = self._find_twins()
        self.common = frozenset(twin for i, twin in enumerate(self.twins) if twin != i)
        self.rows = self._find_rows()
        self.blocks = self._find_blocks()

    def _find_twins(self) -> list[int]:
        """Return for every layer the first one whose weight is identical to its own.

        Without coefficients or weights of its own, a layer that reads the same values into the same
        shape at the same scale has the same weight; it is generated once.
        """
        first: dict[object, int] = {}
        found = []
        for i, (g, layer) in enumerate(self.places):
            if _has_own_numbers(layer):
                found.append(i)
                continue
            key = (g, layer.shape, layer.templates, layer.mixing, layer.source, layer.scale)
            found.append(first.setdefault((key, i in self.low), i))
        return found

    def _find_rows(self) -> dict[int, Rows]:
        found: dict[int, Rows] = {}
        among: dict[tuple[int, str, int], Rows] = {}
        for i, (g, layer) in enumerate(self.places):
            if layer.mixing != "none":
                key = (g, layer.mixing, len(layer.templates))
                rows = among.setdefault(key, Rows(layer.mixing, key[2], []))
                rows.layers.append(i)
                found[i] = rows
        return found

    def _find_blocks(self) -> dict[int, list[int]]:
        weights = sum(layer.size for _, layer in self.places)
        largest = max(LARGEST_BLOCK, weights * LARGEST_PART)
        found: dict[int, list[int]] = {}
        among: dict[object, list[int]] = {}
        for i, (g, layer) in enumerate(self.places):
            if self.twins[i] != i:
                continue
            key = (g, layer.templates, layer.template_size, i in self.low)
            block = among.setdefault(key, [])
            if block and (len(block) + 1) * layer.size > largest:
                block = among[key] = []
            block.append(i)
            found[i] = among[key]
        return found


def _has_own_numbers(layer: LayerAllocation) -> bool:
    mixes = layer.mixing != "none" and GENERATORS[layer.mixing].count([1]) > 0
    return mixes or layer.learned[0] > 0
