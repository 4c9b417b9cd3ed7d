"""`Reading`: which layers read which bank, and which are generated together.

Layers that read the same templates form a block, which is mixed by one product. Blocks form a
`Batch`, which is generated at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from npas.sharing.generators.codebook import CODEBOOK, CodebookBlock, IndexTables, Trust
from npas.sharing.generators.coefficients import GENERATORS
from npas.sharing.generators.hashing import HASH, HashedBlock
from npas.sharing.layers import generator_name, indices_name
from npas.sharing.layout.allocation import Allocation
from npas.sharing.runtime.bank import AnyBlock, Block

LARGEST_BLOCK = 1 << 22
LARGEST_PART = 1 / 16
"""The most weights of a block: the first, or this part of the network's weights if that is more.
A larger block reads its templates less often, but holds all its gradients at once."""
LARGEST_BATCH = 1 << 20
"""The most weights of small blocks that share an autograd node, to save the cost of nodes."""
LARGEST_SET = 1 / 2
"""The largest part of the network whose values are computed at once to read its templates once."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Layers whose coefficients come from the same parameters: one group, generator and K."""

    name: str
    mixing: str
    templates: int
    layers: list[int]
    names: dict[str, str]  # of the parameters, by kind

    def coefficients(self, read: Callable[[str], Tensor]) -> Tensor:
        """Return alpha_LK; `read` returns a tensor by its name."""
        parameters = {kind: read(name) for kind, name in self.names.items()}
        return GENERATORS[self.mixing].coefficients(parameters, len(self.layers), self.templates)


@dataclass(frozen=True)
class Batch:
    """Layers that have one autograd node, in blocks.

    The blocks' rows index the coefficients `alphas`. None among these are the scales, for layers
    that do not mix. `made_with` is the set of all layers whose values are computed at once with
    these, None if there are no others.
    """

    layers: list[int]
    blocks: tuple[AnyBlock, ...]
    alphas: tuple[Rows | None, ...]
    made_with: Batch | None = None


class Reading:
    """Which layers are generated together; layers are indices in `Allocation.layers`.

    - `places`: the group and the plan of each layer.
    - `twins`: for each layer the first with an identical weight; `common`: the firsts of several.
    - `rows`: for each mixing layer, the layers that share its parameters of coefficients.
    - `tables`: those of the indices of each layer that reads a codebook.
    - `batches`: for each generated layer its batch. Layers in `low`, which compute in autocast's
      dtype, are never in a batch with others.
    """

    def __init__(self, allocation: Allocation, low: Collection[int] = ()) -> None:
        self.places = [
            (g, layer) for g, group in enumerate(allocation.groups) for layer in group.layers
        ]
        self.low = frozenset(low)
        self.trust = Trust()
        self.tables = {
            i: IndexTables(layer, self.trust)
            for i, (_, layer) in enumerate(self.places)
            if layer.upsampler == CODEBOOK
        }
        self.twins = self._find_twins()
        self.common = frozenset(twin for i, twin in enumerate(self.twins) if twin != i)
        self.rows: dict[int, Rows] = {}
        first = 0
        for g, group in enumerate(allocation.groups):
            for (mixing, k), places in group.rows.items():
                names = {kind: generator_name(kind, g, k) for kind in _kinds(mixing)}
                layers = [first + place for place in places]
                rows = Rows(generator_name(mixing, g, k), mixing, k, layers, names)
                self.rows |= dict.fromkeys(rows.layers, rows)
            first += len(group.layers)
        self.batches = self._find_batches()
        self._alone: dict[int, Batch] = {}

    def _find_twins(self) -> list[int]:
        """Return for every layer the first one with an identical weight.

        Layers without parameters of their own have identical weights if they read the same values
        of a bank with the same shape and scale.
        """
        first: dict[object, int] = {}
        found = []
        for i, (g, layer) in enumerate(self.places):
            if _kinds(layer.mixing) or layer.learned[0] or layer.rank or not layer.templates:
                found.append(i)
                continue
            reads = layer.templates, layer.mixing, layer.source, layer.first
            key = (g, layer.shape, *reads, layer.scale)
            found.append(first.setdefault((key, i in self.low), i))
        return found

    def _find_batches(self) -> dict[int, Batch]:
        weights = sum(layer.size for _, layer in self.places)
        largest = max(LARGEST_BLOCK, weights * LARGEST_PART)
        sets: list[list[int]] = []  # of layers that read the same templates
        among: dict[object, list[int]] = {}  # the latest set of each kind
        for i, (g, layer) in enumerate(self.places):
            if self.twins[i] != i:
                continue
            own = i if layer.upsampler in (CODEBOOK, HASH) else None
            key = (g, layer.templates, layer.template_size, i in self.low, own)
            found = among.get(key)
            if found is None or (len(found) + 1) * layer.size > max(largest, weights * LARGEST_SET):
                found = among[key] = []
                sets.append(found)
            found.append(i)
        batches: list[list[list[int]]] = []
        made: list[Batch] = []
        last: dict[object, list[list[int]]] = {}
        weights_of: Counter[object] = Counter()  # of the last batch of each kind
        for layers in sets:
            g, layer = self.places[layers[0]]
            many = max(1, int(largest // layer.size))
            if len(layers) > many:
                whole = self._batch([layers])
                for at in range(0, len(layers), many):
                    part = self._batch([layers[at : at + many]])
                    made.append(replace(part, made_with=whole))
                continue
            kind = g, layers[0] in self.low
            size = sum(self.places[i][1].size for i in layers)
            weights_of[kind] += size
            if kind not in last or weights_of[kind] > LARGEST_BATCH:
                last[kind], weights_of[kind] = [], size
                batches.append(last[kind])
            last[kind].append(layers)
        made += map(self._batch, batches)
        return {i: batch for batch in made for i in batch.layers}

    def check_indices(self, read: Callable[[str], Tensor]) -> None:
        """Raise ValueError for indices that were changed in place; `read` returns a tensor."""
        for i, tables in self.tables.items():
            tables.check(read(indices_name(i)))

    def alone(self, index: int) -> Batch:
        """Return a batch of one layer, in reused memory unless other layers have its weight."""
        if index not in self._alone:
            keys = [] if index in self.common else ["passing"]
            self._alone[index] = self._batch([[index]], keys)
        return self._alone[index]

    def _batch(self, blocks: Sequence[Sequence[int]], keys: Sequence[object] = ()) -> Batch:
        """Return a batch of blocks of layers; `keys` name their memory, by default the layers."""
        layers = [i for block in blocks for i in block]
        alphas = list(dict.fromkeys(self.rows.get(i) for i in layers))
        made: list[AnyBlock] = []
        for block in blocks:
            plans, rows, first = [self.places[i][1] for i in block], [], self.places[block[0]][1]
            for i, plan in zip(block, plans, strict=True):
                own = self.rows.get(i)
                row = plan.scale if own is None else own.layers.index(i)
                rows.append((alphas.index(own), row))
            if first.upsampler in (CODEBOOK, HASH):
                shape = first.shape if len(first.shape) > 1 else (1, first.size)
                held = tuple(keys or block), first.size, tuple(rows), (shape,)
                if first.upsampler == HASH:
                    made.append(HashedBlock(*held, first.first))
                else:
                    made.append(CodebookBlock.of(first, held, self.tables[block[0]]))
                continue
            shapes = tuple((p.template_size,) if p.upsampler else p.shape for p in plans)
            reads = first.templates, first.template_size
            made.append(Block(tuple(keys or block), *reads, tuple(rows), shapes))
        return Batch(layers, tuple(made), tuple(alphas))


def _kinds(mixing: str) -> list[str]:
    """Return the kinds of a generator's parameters."""
    return list(GENERATORS[mixing].shapes(1, 1)) if mixing != "none" else []
