"""`Draft`: a bank size and each layer's number of templates, their costs and positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npas.sharing.generators.bases import CHANNELS, template_starts
from npas.sharing.generators.coefficients import GENERATORS, STRUCTURED
from npas.sharing.generators.upsample import UPSAMPLERS, source_map
from npas.sharing.layers import LayerSpec, matrix_form
from npas.sharing.layout.allocation import GroupAllocation, LayerAllocation, Scheme

PART_OF_BANK = 0.5
"""The size of each map, as a part of the bank, if upsampled layers mix several maps."""


@dataclass
class Draft:
    """A bank of `bank` values with K per layer (0 if upsampled) and each layer's mixing."""

    layers: Sequence[LayerSpec]
    scheme: Scheme
    bank: int
    templates: list[int]
    mixing: list[str]

    @property
    def coefficients(self) -> int:
        """Count the generators' parameters."""
        mixed: dict[str, list[int]] = {}
        for k, mixing in zip(self.templates, self.mixing, strict=True):
            if (k := k or self.maps) > 1 and mixing not in STRUCTURED:
                mixed.setdefault(mixing, []).append(k)
        return sum(GENERATORS[mixing].count(ks) for mixing, ks in mixed.items())

    @property
    def maps(self) -> int:
        """Return the number of maps that an upsampled layer mixes."""
        return self.scheme.upsample_templates

    @property
    def mixing_cost(self) -> int:
        """Count the coefficients, including those per channel."""
        channels = [i for i, k in enumerate(self.templates) if k and self.mixing[i] == CHANNELS]
        return self.coefficients + sum(math.prod(self.learned(i)) for i in channels)

    @property
    def cost(self) -> int:
        """Count the parameters besides the bank: coefficients and upsampler weights."""
        learned = sum(math.prod(self.learned(i)) for i in range(len(self.layers)))
        return self.coefficients + learned

    def learned(self, i: int) -> tuple[int, int]:
        """Return the shape of the layer's upsampler weights."""
        if k := self.templates[i]:
            by_channel = self.mixing[i] == CHANNELS
            return (k, matrix_form(self.layers[i].shape)[0]) if by_channel else (0, 0)
        return UPSAMPLERS[self.scheme.upsampler].learned(self.layers[i].size, self.bank)

    def source(self, i: int) -> tuple[int, int]:
        """Return the matrix form of the values that an upsampled layer reads."""
        if self.scheme.upsampler == "inter":
            part = self.bank if self.maps == 1 else max(1, int(self.bank * PART_OF_BANK))
            return source_map(part, matrix_form(self.layers[i].shape))
        return (1, self.bank)

    @property
    def spans(self) -> list[int]:
        """Return by layer the number of bank values from its first template's start to its end."""
        return [
            min(k * layer.size, self.bank) if k else self._read(i)
            for i, (k, layer) in enumerate(zip(self.templates, self.layers, strict=True))
        ]

    def _read(self, i: int) -> int:
        """Return the span of an upsampled layer: its map, or the bank if it mixes several."""
        return math.prod(self.source(i)) if self.maps == 1 else self.bank

    def place(self, name: str) -> GroupAllocation:
        """Return the group's plan, with template positions."""
        spans = self.spans
        placed = []
        for i, start in enumerate(self.starts(spans)):
            layer, k = self.layers[i], self.templates[i]
            size = layer.size if k else math.prod(self.source(i))
            count, how = k or self.maps, dict[str, Any]()
            if not k:
                how = {"upsampler": self.scheme.upsampler, "source": self.source(i)}
                how["learned"] = self.learned(i)
            elif self.mixing[i] == CHANNELS:  # the span is read as one template
                how = {"upsampler": CHANNELS, "source": (1, spans[i]), "learned": self.learned(i)}
                size, count = spans[i], 1
            # Templates that do not fit one after another are spread evenly and overlap.
            span = min(count * size, self.bank)
            positions = tuple(start + at for at in template_starts(span, size, count))
            how |= {"mixing": self.mixing[i]} if count > 1 else {}
            how |= {"templates": positions, "template_size": size}
            placed.append(LayerAllocation(**vars(layer), **how))
        return GroupAllocation(name, self.bank, tuple(placed))

    def starts(self, spans: Sequence[int]) -> list[int]:
        """Return the start of each layer's span.

        Upsampled layers start at 0, so that layers of one shape read the same map and are resized
        once. The others cover the rest of the bank first. If they do not cover all of it, the last
        upsampled layer ends at the bank's end.
        """
        fitting = [i for i, k in enumerate(self.templates) if k]
        resized = [i for i, k in enumerate(self.templates) if not k]
        starts = [0] * len(spans)
        covered = max((spans[i] for i in resized), default=0)
        if covered + sum(spans[i] for i in fitting) < self.bank:
            starts[resized[-1]] = self.bank - spans[resized[-1]]
        placed = place_spans([spans[i] for i in fitting], self.bank, covered)
        for i, start in zip(fitting, placed, strict=True):
            starts[i] = start
        return starts


def place_spans(spans: Sequence[int], bank: int, covered: int = 0) -> list[int]:
    """Return a start for every span: round-robin over the bank, the largest spans first.

    The first sweep starts after the first `covered` values, which are read already. A span that
    would exceed the bank ends at its end. So every value is read before any is read twice, except
    for that overlap, and layers of equal spans have few different positions. Layers at the same
    position can share the reading of a template.
    """
    starts = [0] * len(spans)
    cursor, grid, previous = covered, 0, 0
    for i in sorted(range(len(spans)), key=lambda i: -spans[i]):
        span = spans[i]
        if cursor >= bank:
            cursor = grid if span == previous and grid + span <= bank else 0
        if span != previous:
            previous, grid = span, cursor % span
        starts[i] = min(cursor, bank - span)
        cursor += span
    return starts
