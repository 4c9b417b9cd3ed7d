"""Fit a codebook to trained weights: vector quantization of short rows.

All layers' weights, each divided by its root mean square, are cut into rows of C values. Each reads
the nearest of K rows of the bank, or its negative. An index counts as a parameter, so that a budget
of A parameters for N weights leaves about A - N / C for the bank: long rows have cheap indices, and
short ones many near rows. C is the one whose expected error is least (`_expected`).

The K rows are the means of the cells of a tree, as for k-d trees (Bentley 1975): each cell is cut
across its widest coordinate, in proportion to its part of K. Then a few of Lloyd's iterations
follow, in which a row chooses among its NEAR neighbours in the tree.

Values whose errors change the outputs more have larger weights and more rows of the bank near.

Shapes: M rows of C values, K rows of the bank.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npas.sharing.budget import split_budget
from npas.sharing.generators.codebook import CODEBOOK, codebook_weight
from npas.sharing.generators.low_rank import correct, count_corrections
from npas.sharing.layers import SCALES, Layer, bank_name, indices_name, matrix_form
from npas.sharing.layout.allocation import GroupAllocation, LayerAllocation
from npas.sharing.trained.stacks import Placed, norm, scaled
from npas.utils.progress import track

Weigh = Callable[[Layer], Tensor]
LONGEST = 64
PIECE, AT_ONCE = 1 << 14, 1 << 17
"""Rows that are compared, and that are sorted, at a time."""
SMALLEST = 1e-9
"""The smallest factor of a squared error, relative to the mean: each value has some."""
NEAR = 16
ITERATIONS = 3
"""More of either takes longer and gains little."""


def row_length(sizes: Sequence[int], available: int) -> int | None:
    """Return the C of least expected error; None if no C has two rows for the bank.

    A C for which the weights have fewer whole rows than the bank is the last choice: each bank row
    needs a whole one, or nothing would read its end.
    """
    best, found = (True, math.inf), None
    for row in range(2, LONGEST + 1):
        total, whole = _cut(sizes, row)
        count = (available - total) // row
        if min(count, whole) >= 2:
            error = count > whole, _expected(row, 2 * min(count, whole))
            if error < best:
                best, found = error, row
    return found


def _cut(sizes: Sequence[int], row: int) -> tuple[int, int]:
    """Return the number of rows of all weights, and of whole ones."""
    return sum(-(-size // row) for size in sizes), sum(size // row for size in sizes)


def smallest(layers: Sequence[Layer], rank: int = 0) -> float:
    """Return the fewest parameters of codebooks for these layers, infinity if there are none.

    They include the layers' low-rank corrections.
    """
    return sum(_smallest(own) + _corrections(own, rank) for own in by_kind(layers))


def _corrections(layers: Sequence[Layer], rank: int) -> int:
    return count_corrections([[layer.spec for layer in layers]], rank)


def _smallest(layers: Sequence[Layer]) -> float:
    found, sizes = math.inf, [layer.spec.size for layer in layers]
    for row in range(2, LONGEST + 1):
        total, whole = _cut(sizes, row)
        if whole >= 2:
            found = min(found, total + 2 * row)
    return found


def by_kind(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Return the layers of each dtype and device: a bank has one of each."""
    kinds: dict[object, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault((layer.parameter.dtype, layer.parameter.device), []).append(layer)
    return [*kinds.values()]


def _expected(row: int, count: int) -> float:
    """Return the squared error of the best `count` rows for normal values of variance one.

    Zador's random-coding bound (IEEE Trans. Inf. Theory 28, 1982) with the optimal density of rows:
    exact for many rows only, but here it ranks lengths of rows.
    """
    half = row / 2
    ball = math.lgamma(1 + 1 / half) + math.lgamma(1 + half) / half - math.log(math.pi * row)
    density = math.log(2 * math.pi) + (half + 1) * math.log(1 + 1 / half)
    return math.exp(ball + density - math.log(count) / half)


@torch.no_grad()
def quantize(
    rows_MC: Tensor, count: int, weight_MC: Tensor | None = None, whole_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return K bank rows, K x C, and the signed indices, M, into them.

    `weight_MC` are the factors of the values' squared errors, by default one. Each bank row is read
    by a row that is whole (`whole_M`, by default all).
    """
    sign_M1 = torch.where(rows_MC.sum(1, keepdim=True) < 0, -1.0, 1.0).to(rows_MC.dtype)
    folded_MC = rows_MC * sign_M1
    label_M = tree(folded_MC, count, weight_MC)
    order_M = label_M.argsort()  # neighbours are next to each other in memory, which is faster
    folded_MC, label_M = folded_MC[order_M], label_M[order_M]
    weight_MC = None if weight_MC is None else weight_MC[order_M]
    whole_M = torch.ones_like(label_M, dtype=torch.bool) if whole_M is None else whole_M[order_M]
    first_M = label_M // NEAR * NEAR
    bank_KC = _means(folded_MC, label_M, count, weight_MC)
    for _ in track(range(ITERATIONS), "refining the codebook"):
        nearest_M = torch.empty_like(folded_MC[:, 0])
        for part in (slice(at, at + PIECE) for at in range(0, len(label_M), PIECE)):
            near_MJ = first_M[part, None] + torch.arange(NEAR)
            near_MJ = near_MJ.clamp_(max=count - 1)
            far_MJC = (folded_MC[part, None] - bank_KC[near_MJ]).square_()
            if weight_MC is not None:
                far_MJC *= weight_MC[part, None]
            nearest_M[part], best_M = far_MJC.sum(2).min(1)
            label_M[part] = near_MJ.gather(1, best_M[:, None])[:, 0]
        _reseed(label_M, nearest_M, whole_M, count)
        bank_KC = _means(folded_MC, label_M, count, weight_MC)
    index_M = torch.empty_like(label_M)
    index_M[order_M] = label_M
    return bank_KC, torch.where(sign_M1[:, 0] < 0, -1 - index_M, index_M)


def tree(rows_MC: Tensor, count: int, weight_MC: Tensor | None = None) -> Tensor:
    """Return each row's cell, M, of `count` cells of nearly equal mass.

    The mass of a row is w^(C / (C + 2)) for the mean weight w of its values, so that cells are as
    dense as is best for many of them (Zador 1982).
    """
    size, length = rows_MC.shape
    assert 1 <= count <= size
    mass_M = torch.ones(size, dtype=torch.float64)
    if weight_MC is not None:
        mass_M = weight_MC.mean(1, dtype=torch.float64) ** (length / (length + 2))
    label_M = torch.empty(size, dtype=torch.int64)
    parts, first = [(torch.arange(size), count)], 0
    while parts:  # down to parts that are sorted in cache
        row_M, cells = parts.pop()
        part_MC = rows_MC[row_M]
        if len(row_M) > AT_ONCE and cells > 1:
            order_M = part_MC[:, int(part_MC.var(0).argmax())].argsort()
            row_M, half = row_M[order_M], cells // 2
            mass_up_to = mass_M[row_M].cumsum(0)
            cut = int(torch.searchsorted(mass_up_to, float(mass_up_to[-1]) * half / cells))
            cut = min(max(cut, half), len(row_M) - cells + half)
            parts += [(row_M[cut:], cells - half), (row_M[:cut], half)]
            continue
        label_M[row_M] = first + _cells(part_MC, cells, mass_M[row_M])
        first += cells
    return label_M


def _cells(rows_MC: Tensor, count: int, mass_M: Tensor) -> Tensor:
    """Return each row's cell, M; all cells of one depth are cut at once."""
    order_M = torch.arange(len(rows_MC))
    sizes_S, cells_S = torch.tensor([len(rows_MC)]), torch.tensor([count])
    while int(cells_S.max()) > 1:
        segment_M = torch.arange(len(sizes_S)).repeat_interleave(sizes_S)
        sorted_MC = rows_MC[order_M]
        mean_SC = _means(sorted_MC, segment_M, len(sizes_S))
        square_SC = _means(sorted_MC.square(), segment_M, len(sizes_S))
        widest_S = (square_SC - mean_SC.square()).argmax(1)
        value_M = sorted_MC.gather(1, widest_S[segment_M][:, None])[:, 0].double()
        within_M = value_M / (1 + value_M.abs()) / 2.001  # from -0.5 to 0.5, in the same order
        order_M = order_M[(segment_M + within_M).argsort()]
        mass_up_to = nn.functional.pad(mass_M[order_M].cumsum(0), (1, 0))  # before each row
        ends_S, half_S = sizes_S.cumsum(0), cells_S // 2
        low_S, high_S = mass_up_to[ends_S - sizes_S], mass_up_to[ends_S]
        wanted_S = low_S + (high_S - low_S) * (half_S / cells_S)
        cut_S = torch.searchsorted(mass_up_to, wanted_S) - (ends_S - sizes_S)
        cut_S = torch.minimum(torch.maximum(cut_S, half_S), sizes_S - cells_S + half_S)
        cut_S = torch.where(half_S > 0, cut_S, 0)
        cells_S = torch.stack([half_S, cells_S - half_S], 1).flatten()
        sizes_S = torch.stack([cut_S, sizes_S - cut_S], 1).flatten()
        sizes_S, cells_S = sizes_S[cells_S > 0], cells_S[cells_S > 0]
    label_M = torch.empty_like(order_M)
    label_M[order_M] = torch.arange(count).repeat_interleave(sizes_S)
    return label_M


def _means(rows_MC: Tensor, label_M: Tensor, count: int, weight_MC: Tensor | None = None) -> Tensor:
    """Return the (weighted) means of the rows of each label, K x C; zeros for none."""
    sums_KC = rows_MC.new_zeros(count, rows_MC.shape[1])
    if weight_MC is None:
        sums_KC.index_add_(0, label_M, rows_MC)
        return sums_KC / torch.bincount(label_M, minlength=count).clamp(min=1)[:, None]
    whole_KC = torch.zeros_like(sums_KC).index_add_(0, label_M, weight_MC)
    return sums_KC.index_add_(0, label_M, rows_MC * weight_MC) / whole_KC.clamp(min=1e-30)


def _reseed(label_M: Tensor, error_M: Tensor, whole_M: Tensor, count: int) -> None:
    """Give each bank row that no whole row reads one of those with the largest errors, in place.

    A bank row keeps its last whole reader.
    """
    idle_K = (torch.bincount(label_M[whole_M], minlength=count) == 0).nonzero()[:, 0]
    if len(idle_K):
        order_M = whole_M.nonzero()[:, 0]
        order_M = order_M[error_M[order_M].argsort(descending=True, stable=True)]
        own_M, at_M = label_M[order_M], torch.arange(len(order_M))
        last_K = torch.zeros(count, dtype=torch.int64).scatter_reduce_(0, own_M, at_M, "amax")
        spare_M = order_M[last_K[own_M] != at_M]
        label_M[spare_M[: len(idle_K)]] = idle_K


def place_codebooks(
    layers: Sequence[Layer], available: int, weigh: Weigh | None = None, rank: int = 0
) -> Placed | None:
    """Return a codebook for the layers of each dtype and device; None if one does not fit.

    `weigh` returns a layer's factors of squared errors of its scaled weight, as a matrix. With a
    `rank`, room is left for low-rank corrections (see `corrections`), whose values are not made.
    """
    kinds = by_kind(layers)
    if smallest(layers, rank) > available:
        return None
    sizes = [sum(layer.spec.size for layer in own) for own in kinds]
    floors = [int(smallest(own, rank)) for own in kinds]
    groups: list[GroupAllocation] = []
    values: dict[str, Tensor] = {}
    scales: list[float] = []
    index = 0
    for own, part in zip(kinds, split_budget(available, sizes, floors), strict=True):
        part -= _corrections(own, rank)
        made = fit_codebook(f"codebook {len(groups)}", own, part, len(scales), weigh)
        values[bank_name(len(groups))] = made.bank
        values |= {indices_name(index + i): rows for i, rows in enumerate(made.indices)}
        groups.append(correct(made.group, rank))
        scales += made.scales
        index += len(own)
    values[SCALES] = torch.tensor(scales, dtype=torch.float64)
    return groups, values


def generated_errors(
    layers: Sequence[Layer], groups: Sequence[GroupAllocation], values: Mapping[str, Tensor]
) -> Iterator[Tensor]:
    """Yield the error of each layer's generated weight, scaled as the weight is, as a matrix."""
    plans = {
        plan.name: (bank_name(g), indices_name(index), plan)
        for index, (g, plan) in enumerate(
            (g, p) for g, own in enumerate(groups) for p in own.layers
        )
    }
    for layer in layers:
        bank, indices, plan = plans[layer.spec.name]
        picked = codebook_weight(
            values[bank], values[indices].view(-1), plan.template_size, plan.source[1], plan.size
        )
        scale = values[SCALES][plan.scale] / norm(layer)
        yield scaled(layer) - picked.view(matrix_form(plan.shape)) * scale


@dataclass(frozen=True)
class Codebook:
    """A group with its bank, and each layer's indices and scale."""

    group: GroupAllocation
    bank: Tensor
    indices: list[Tensor]
    scales: list[float]


def fit_codebook(
    name: str, layers: Sequence[Layer], available: int, first_scale: int, weigh: Weigh | None
) -> Codebook:
    """Quantize the layers' weights with `available` parameters.

    The layers' scales have indices from `first_scale` on.
    """
    sizes = [layer.spec.size for layer in layers]
    row = row_length(sizes, available)
    assert row is not None
    total, whole = _cut(sizes, row)
    values = min(available - total, row * whole)
    counts = [-(-size // row) for size in sizes]
    whole_M = torch.cat(
        [torch.arange(1, n + 1) * row <= size for n, size in zip(counts, sizes, strict=True)]
    )
    norms = [norm(layer) for layer in layers]
    rows_MC = torch.cat(
        [
            _rows(layer.parameter.detach().to("cpu", torch.float64) / own, row)
            for layer, own in zip(layers, norms, strict=True)
        ]
    )
    weight_MC = None
    if weigh is not None:
        weight_MC = torch.cat([_rows(weigh(layer), row) for layer in layers])
        weight_MC = (weight_MC / weight_MC.mean()).clamp_(min=SMALLEST)
    bank_KC, index_M = quantize(rows_MC, values // row, weight_MC, whole_M)
    bank_P = bank_KC.flatten()
    if rest := values % row:
        bank_P = torch.cat([bank_P, _overlapping(bank_KC, index_M, rows_MC, whole_M, rest)])
    spread = math.sqrt(sum(own**2 for own in norms) / len(norms))
    planned = []
    for i, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        planned.append(
            LayerAllocation(
                **vars(layer.spec), templates=(0,), template_size=values, upsampler=CODEBOOK,
                source=(1, row), learned=(count, 1), scale=first_scale + i,
            )
        )  # fmt: skip
    return Codebook(
        GroupAllocation(name, values, tuple(planned)),
        bank_P.double() * spread,
        [part.int()[:, None] for part in index_M.split(counts)],
        [own / spread for own in norms],
    )


def _rows(values: Tensor, row: int) -> Tensor:
    """Return values in rows, the last padded by zeros, in fp32."""
    flat = values.reshape(-1).to("cpu", torch.float32)
    return nn.functional.pad(flat, (0, -len(flat) % row)).view(-1, row)


def _overlapping(
    bank_KC: Tensor, index_M: Tensor, rows_MC: Tensor, whole_M: Tensor, rest: int
) -> Tensor:
    """Return `rest` more values of the bank; set the index of the row that reads them, in place.

    The bank's last C values are one more row, which overlaps row K - 1. The whole row of a weight
    that is nearest to it where they overlap reads it.
    """
    place_M = torch.where(index_M < 0, -1 - index_M, index_M)
    shared = bank_KC.shape[1] - rest
    far_M = (rows_MC[:, :shared] - bank_KC[-1, rest:]).square().sum(1)
    readers_K = torch.bincount(place_M[whole_M], minlength=len(bank_KC))
    far_M[~whole_M | (readers_K[place_M] < 2)] = math.inf
    reader = int(far_M.argmin())
    index_M[reader] = len(bank_KC)
    return rows_MC[reader, shared:]
