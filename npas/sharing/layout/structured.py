"""Plan the generators that treat all layers of a group alike, whether or not they fit the bank.

- hash: a layer consists of signed rows of the bank, which are read equally often (see `hashing`).
- basis: a weight is a matrix R x N, R the shorter side. Row or column r mixes vectors of length N
  in the bank (see `bases`). A layer reads the whole bank, or a part of its own size if smaller.
- tiles: each tile of a weight mixes vectors of the bank, of the size of one tile. It has the height
  and the width of the smallest layers, but for those that are few parameters together and stay
  whole, and is halved until several templates fit.
- factorized: as basis, but each layer has its own part of the bank: W = B A of low rank. Nothing is
  shared, and the smallest layers are whole; this is a baseline.
- registered schemes: a layer reads a span of the bank of its own size, or the whole bank.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npas.sharing.generators import schemes
from npas.sharing.generators.bases import CHANNELS, TILES, tile_grid
from npas.sharing.generators.coefficients import OF_DEPTH, STRUCTURED
from npas.sharing.generators.hashing import HASH, largest_bank
from npas.sharing.layers import LayerSpec, matrix_form
from npas.sharing.layout.allocation import GroupAllocation, LayerAllocation
from npas.sharing.layout.draft import place_spans

WHOLE = ("basis", TILES, "factorized", HASH)
SMALLEST_BANK = 16
"""The smallest bank, except for a layer that is smaller."""


def makes_whole(generator: str) -> bool:
    """Return whether a generator treats all layers of a group alike."""
    return generator in WHOLE or schemes.is_foreign(generator)


def check_generator(generator: str, coefficient_init: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if the generator does not support the other options."""
    upsampler, upsample_templates = options["upsampler"], options["upsample_templates"]
    if generator in STRUCTURED or schemes.is_foreign(generator):
        ignored: dict[str, Any] = {"templates": None, "upsample_templates": 1}
        if makes_whole(generator):
            ignored |= {"upsampler": "inter", "max_templates": 8}
        for option, default in ignored.items():
            if options[option] != default:
                raise ValueError(
                    f"{option}={options[option]!r} does not apply to generator={generator!r}, which"
                    " mixes no templates: leave it out, or use generator='wavg'"
                )
        starts = ("orthogonal", "sparse") if generator == CHANNELS else ("orthogonal",)
        if coefficient_init not in starts:
            raise ValueError(
                f"coefficient_init={coefficient_init!r} does not apply to generator={generator!r}:"
                f" leave it {' or '.join(starts)}"
            )
    if upsample_templates > 1 and (upsampler != "inter" or coefficient_init in OF_DEPTH):
        raise ValueError(
            f"upsample_templates={upsample_templates} mixes maps that upsampler='inter' resizes, by"
            " coefficients that are drawn: leave upsampler and coefficient_init as they are"
        )


def size_whole(
    name: str, layers: Sequence[LayerSpec], available: int, generator: str
) -> GroupAllocation:
    """Plan a group of at most `available` parameters; ValueError if it cannot use so many."""
    total = sum(layer.size for layer in layers)
    if available > total:
        raise ValueError(
            f"generator={generator!r} has no use for more parameters than the layers have, and"
            f" group {name!r} gets {available:,} for {total:,}: ask for a budget below 1, or choose"
            " generator='wavg'"
        )
    if available == total:
        return GroupAllocation(name, 0, tuple(LayerAllocation(**vars(layer)) for layer in layers))
    sizing = {"basis": _basis, TILES: _tiled, "factorized": _factorized, HASH: _hashed}
    if generator not in sizing:
        return _foreign(name, layers, available, generator)
    return sizing[generator](name, layers, available)


def smallest_whole(layers: Sequence[LayerSpec], generator: str) -> int:
    """Return the fewest parameters that a group can be planned with."""
    if generator == HASH:
        return min(SMALLEST_BANK, *(layer.size for layer in layers))
    if generator == TILES:
        costs = (math.prod(tile) + count for tile, count in _tiles(layers))
        return min(*costs, sum(layer.size for layer in layers))
    if generator not in WHOLE:
        banks = _banks(layers)
        costs = (bank + _learned(layers, bank, generator) for bank in banks)
        return min(*costs, sum(layer.size for layer in layers))
    sides = [_Side.of(layer) for layer in layers]
    mixtures = sum(side.rows for side in sides)
    if generator == "basis":
        return min(mixtures + max(s.values for s in sides), sum(la.size for la in layers))
    return sum(side.cost(1) for side in sides)


def _hashed(name: str, layers: Sequence[LayerSpec], available: int) -> GroupAllocation:
    available = largest_bank(available, sum(layer.size for layer in layers))
    first, planned = 0, list[LayerAllocation]()
    for layer in layers:
        how: dict[str, Any] = {"upsampler": HASH, "source": (1, available), "first": first}
        planned.append(
            LayerAllocation(**vars(layer), templates=(0,), template_size=available, **how)
        )
        first += layer.size
    return GroupAllocation(name, available, tuple(planned))


def _foreign(
    name: str, layers: Sequence[LayerSpec], available: int, scheme: str
) -> GroupAllocation:
    def fits(bank: int) -> bool:
        return bank + _learned(layers, bank, scheme) <= available

    total = sum(layer.size for layer in layers)
    bank = _largest(fits, total, max(bank for bank in _banks(layers) if fits(bank)))
    spans = [min(bank, layer.size) for layer in layers]
    planned, first = list[LayerAllocation](), 0
    for layer, at, span in zip(layers, place_spans(spans, bank), spans, strict=True):
        how: dict[str, Any] = {"upsampler": scheme, "source": (1, span), "first": first}
        how["learned"] = schemes.learned_shape(scheme, layer.shape, span)
        planned.append(LayerAllocation(**vars(layer), templates=(at,), template_size=span, **how))
        first += layer.size
    return GroupAllocation(name, bank, tuple(planned))


def _banks(layers: Sequence[LayerSpec]) -> list[int]:
    """Return sizes of banks to try: the one with the fewest parameters depends on the scheme."""
    total = sum(layer.size for layer in layers)
    bank = min(SMALLEST_BANK, *(layer.size for layer in layers))
    return [bank << i for i in range(total.bit_length()) if bank << i <= total]


def _learned(layers: Sequence[LayerSpec], bank: int, scheme: str) -> int:
    alike = Counter(layer.shape for layer in layers).items()
    return sum(
        n * math.prod(schemes.learned_shape(scheme, shape, min(bank, math.prod(shape))))
        for shape, n in alike
    )


@dataclass(frozen=True)
class _Side:
    """A layer's matrix as R `rows` of N `values`, R the shorter side."""

    layer: LayerSpec
    rows: int
    values: int
    upsampler: str

    @classmethod
    def of(cls, layer: LayerSpec) -> _Side:
        """Return a layer's sides; a square matrix mixes rows."""
        rows, values = matrix_form(layer.shape)
        if rows <= values:
            return cls(layer, rows, values, "rows")
        return cls(layer, values, rows, "columns")

    def vectors(self, read: int) -> int:
        """Return how many vectors `read` values are; the last may be truncated."""
        return -(-read // self.values)

    def cost(self, vectors: int) -> int:
        """Count the parameters of a factorization, or of the layer itself if fewer."""
        return min(vectors * (self.rows + self.values), self.layer.size)

    def plan(self, start: int, read: int, mixtures: int) -> LayerAllocation:
        """Return the plan of a layer that reads `read` values from `start` on."""
        vectors = self.vectors(read)
        whole = mixtures == vectors * self.rows
        return LayerAllocation(
            **vars(self.layer), templates=(start,), template_size=read, source=(1, read),
            upsampler=self.upsampler, learned=(vectors, self.rows) if whole else (1, mixtures),
        )  # fmt: skip


def _basis(name: str, layers: Sequence[LayerSpec], available: int) -> GroupAllocation:
    sides = [_Side.of(layer) for layer in layers]

    def counts(bank: int, rest: int) -> list[int]:
        """Return each layer's number of mixtures, with at most `rest` for the last vector."""
        found = []
        for side in sides:
            if bank >= side.layer.size:  # as many vectors as rows
                found.append(side.rows * side.rows)
            else:
                found.append((side.vectors(bank) - 1) * side.rows + min(rest, side.rows))
        return found

    most = sum(layer.size for layer in layers)
    bank = _largest(lambda bank: bank + sum(counts(bank, 1)) <= available, most)
    mixtures = counts(bank, most)
    over = bank + sum(mixtures) - available
    for i, few in sorted(enumerate(counts(bank, 1)), key=lambda pair: -pair[1]):
        cut = min(max(over, 0), mixtures[i] - few)
        mixtures[i] -= cut
        over -= cut
    spans = [min(bank, layer.size) for layer in layers]
    planned = tuple(
        side.plan(start, span, count)
        for side, start, span, count in zip(
            sides, place_spans(spans, bank), spans, mixtures, strict=True
        )
    )
    return GroupAllocation(name, bank, planned)


def _tiles(layers: Sequence[LayerSpec]) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield tiles and how many cover the layers: from the smallest layers' sides on, halved."""
    heights, widths = zip(*(matrix_form(layer.shape) for layer in layers), strict=True)
    height, width = min(heights), min(widths)
    while True:
        tile = height, width
        yield tile, sum(math.prod(tile_grid(layer.shape, tile)) for layer in layers)
        if tile == (1, 1):
            return
        if height > width:
            height = -(-height // 2)
        else:
            width = -(-width // 2)


def _tile(layers: Sequence[LayerSpec], available: int) -> tuple[tuple[int, int], int]:
    """Return the first tile of which TEMPLATES fit, else the one of which most do."""
    best, most = ((0, 0), 0), -1
    for tile, count in _tiles(layers):
        vectors = available // (math.prod(tile) + count)
        if vectors > most:
            best, most = (tile, count), vectors
        if vectors >= TEMPLATES:
            break
    return best


def _tiled(name: str, layers: Sequence[LayerSpec], available: int) -> GroupAllocation:
    small = _small(layers, available)
    kept = sum(layers[i].size for i in small)
    rest = [layer for i, layer in enumerate(layers) if i not in small]
    tile, count = _tile(rest, available - kept)
    if kept + math.prod(tile) + count > available:
        small, kept, (tile, count) = set(), 0, _tile(layers, available)
    # A truncated vector meets the budget exactly, with coefficients of the largest layers' tiles.
    values = math.prod(tile)
    vectors, left = divmod(available - kept, values + count)
    more = min(max(1, left * values // (values + count)), values) if left > 1 else 0
    left -= more
    whole, start, planned = vectors * values, 0, dict[int, LayerAllocation]()
    for i, layer in sorted(enumerate(layers), key=lambda pair: -pair[1].size):
        if i in small:
            how: dict[str, Any] = {"templates": (start,), "template_size": layer.size}
            start += layer.size
        else:
            tiles = math.prod(tile_grid(layer.shape, tile))
            part = min(tiles, left)
            left -= part
            how = {"templates": (kept,), "template_size": whole + (more if part else 0)}
            learned = (
                (vectors + bool(part), tiles) if part in (0, tiles) else (1, vectors * tiles + part)
            )
            how |= {"upsampler": TILES, "source": tile, "learned": learned}
        planned[i] = LayerAllocation(**vars(layer), **how)
    return GroupAllocation(name, kept + whole + more, tuple(planned[i] for i in range(len(layers))))


def _small(layers: Sequence[LayerSpec], available: int) -> set[int]:
    """Return the indices of the smallest layers, at most 1 / SMALL of the parameters together."""
    by_size = sorted(range(len(layers)), key=lambda i: layers[i].size)
    sums = itertools.accumulate(layers[i].size for i in by_size)
    return {i for i, total in zip(by_size, sums, strict=True) if total <= available // SMALL}


def _factorized(name: str, layers: Sequence[LayerSpec], available: int) -> GroupAllocation:
    sides = [_Side.of(layer) for layer in layers]
    small = _small(layers, available)

    def ranks(part: int) -> list[int]:
        """Return ranks in proportion to those at which a factorization costs the layer's size."""
        full = [side.rows * side.values / (side.rows + side.values) for side in sides]
        found = [max(1, int(part * rank / PARTS)) for rank in full]
        return [sides[i].rows if i in small else rank for i, rank in enumerate(found)]

    def cost(ranks: Sequence[int]) -> int:
        return sum(side.cost(rank) for side, rank in zip(sides, ranks, strict=True))

    if cost(ranks(0)) > available:
        small.clear()
    found = ranks(_largest(lambda part: cost(ranks(part)) <= available, PARTS))
    left = available - cost(found)
    extra = [(0, 0)] * len(sides)  # values and mixtures of a truncated vector
    for i, side in sorted(enumerate(sides), key=lambda pair: -pair[1].layer.size):
        whole = side.rows + side.values
        if side.cost(found[i]) == side.layer.size:
            continue
        if whole <= left and side.cost(found[i] + 1) < side.layer.size:
            found[i] += 1
            left -= whole
        elif 1 < left < whole and side.cost(found[i]) + left < side.layer.size:
            values = min(
                max(1, left * side.values // whole, left - side.rows), side.values, left - 1
            )
            extra[i] = values, left - values
            left = 0
    planned, start = [], 0
    for side, rank, (values, mixtures) in zip(sides, found, extra, strict=True):
        if side.cost(rank) == side.layer.size:
            how: dict[str, Any] = {"templates": (start,), "template_size": side.layer.size}
            planned.append(LayerAllocation(**vars(side.layer), **how))
        else:
            read = rank * side.values + values
            planned.append(side.plan(start, read, rank * side.rows + mixtures))
        start += planned[-1].template_size
    return GroupAllocation(name, start, tuple(planned))


TEMPLATES = 8
"""The least number of templates of tiles, while tiles can be halved."""
PARTS = 1 << 20
SMALL = 30
"""The smallest layers, at most 1 / SMALL of the parameters, are not factorized: a classifier or a
first convolution of rank 1 would lose almost everything, and save little."""


def _largest(fits: Callable[[int], bool], most: int, low: int = 1) -> int:
    """Return the largest number from `low` to `most` that fits, by bisection."""
    high = most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
