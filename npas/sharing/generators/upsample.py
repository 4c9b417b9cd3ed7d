"""Upsamplers: make the weight of a layer that is larger than its bank (Plummer et al., 3.1).

`inter` resizes a smaller two-dimensional map bilinearly. The others tile the bank: `repeat` as it
is, `mask` and `wavg` with a few learned weights per layer.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from npas.sharing.torch_private import is_traced

Shape = tuple[int, int]
WINDOW = 9
"""Values of a learned pattern of `mask`: a 3x3 kernel."""


class Repeat:
    """Tile the bank. Base class of the other upsamplers."""

    def learned(self, size: int, bank: int) -> Shape:
        """Return the shape of the learned weights of a layer of `size` for a bank of `bank`."""
        return (0, 0)

    def initial(self, shape: Shape, rng: torch.Generator) -> Tensor:
        """Return initial learned weights that preserve the bank's variance."""
        return torch.empty(shape)

    def weight(self, values_N: Tensor, learned: Tensor | None, source: Shape, to: Shape) -> Tensor:
        """Return the flat weight of matrix form `to`, out x rest.

        `source` is the matrix form of `values_N`.
        """
        size = math.prod(to)
        return values_N.repeat(-(-size // len(values_N)))[:size]


class Mask(Repeat):
    """Tile the bank; each copy after the first is multiplied by a learned repeating pattern."""

    def learned(self, size: int, bank: int) -> Shape:
        """Return copies x window."""
        return (max(0, -(-size // bank) - 1), WINDOW)

    def initial(self, shape: Shape, rng: torch.Generator) -> Tensor:
        """Draw random signs, so that copies differ and keep the bank's variance."""
        return torch.randint(0, 2, shape, generator=rng).float() * 2 - 1

    def weight(self, values_N: Tensor, learned: Tensor | None, source: Shape, to: Shape) -> Tensor:
        """Return the values and their masked copies, cut to the layer's size."""
        assert learned is not None
        length = len(values_N)
        patterns = learned.repeat(1, -(-length // learned.shape[1]))[:, :length]
        return torch.cat([values_N, (patterns * values_N).reshape(-1)])[: math.prod(to)]


class WeightedHalves(Repeat):
    """Concatenate segments of half a bank, each a learned mixture of the bank's two halves."""

    def learned(self, size: int, bank: int) -> Shape:
        """Return segments x 2."""
        return (-(-size // -(-bank // 2)), 2)

    def initial(self, shape: Shape, rng: torch.Generator) -> Tensor:
        """Return different mixtures of unit norm, evenly spaced on the half circle."""
        offset = torch.rand((), generator=rng)
        angle = (torch.arange(shape[0]) + offset) * (math.pi / shape[0])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def weight(self, values_N: Tensor, learned: Tensor | None, source: Shape, to: Shape) -> Tensor:
        """Return the segments, cut to the layer's size; halves of odd banks overlap by one."""
        assert learned is not None
        half = -(-len(values_N) // 2)
        halves = torch.stack([values_N[:half], values_N[-half:]])
        return (learned @ halves).reshape(-1)[: math.prod(to)]


class Interpolate(Repeat):
    """Resize a smaller map bilinearly (align_corners=False), as the released code does."""

    def weight(self, values_N: Tensor, learned: Tensor | None, source: Shape, to: Shape) -> Tensor:
        """Return the resized map."""
        return resize(values_N.view(source), to).reshape(-1)


UPSAMPLERS: dict[str, Repeat] = {
    "inter": Interpolate(),
    "repeat": Repeat(),
    "mask": Mask(),
    "wavg": WeightedHalves(),
}


def source_map(bank: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of the map that `inter` resizes, close to the layer's aspect ratio.

    Of the row counts within 0.8 to 1.25 of the proportional one, this takes the one that leaves the
    fewest bank values unread; ties go to the closest. If it leaves more than a thousandth unread
    (tiny banks, or banks nearly as large as the layer), the map is the whole bank as one row, which
    is resized along the flat weight.
    """
    rows, columns = shape
    ideal = math.sqrt(bank * rows / columns)
    nearest = range(max(1, math.floor(ideal * 0.8)), min(rows, math.ceil(ideal * 1.25)) + 1)

    def unread(r: int) -> int:
        return bank - r * min(columns, bank // r)

    best = min(nearest, key=lambda r: (unread(r), abs(r - ideal)), default=1)
    return (best, min(columns, bank // best)) if unread(best) * 1000 <= bank else (1, bank)


TILE = 1 << 18
"""Values that a CPU computes at a time, so that intermediate values fit its cache."""
LARGE_TILE = 1 << 24
"""The same on other devices, to limit memory."""
SHORT = 1 << 14
"""The longest side of a map whose taps and bags are cached."""

Span = tuple[int, int]  # half-open
Taps = tuple[Tensor, Tensor, Tensor, Tensor]
Bags = tuple[Tensor, Tensor, Tensor]
Like = tuple[torch.dtype, torch.device]


def resize(source: Tensor, shape: Shape) -> Tensor:
    """Return the matrix `source` resized to `shape`, in its dtype; differentiable to any order.

    Half precision is computed in fp32 and rounded once.
    """
    if not source.is_meta and not is_traced():
        resized: Tensor = _Resize.apply(source, shape)
        return resized
    wide = _wide(source)
    for dim in (1, 0):
        span = 0, shape[dim]
        wide = _mix(wide, dim, _taps(source.shape[dim], shape[dim], span, _like(wide)))
    return wide.to(source.dtype)


def mean_variance(source: Shape, shape: Shape) -> float:
    """Return the mean variance of a resized matrix of independent unit-variance values."""
    factors = []
    for before, after in zip(source, shape, strict=True):
        squares = 0.0
        for span in _spans(after, LARGE_TILE):
            _, _, near, far = _taps(before, after, span, (torch.float64, torch.device("cpu")))
            squares += float((near.square() + far.square()).sum())
        factors.append(squares / after)
    return factors[0] * factors[1]


class _Resize(Function):
    """Resize in tiles. Its backward is `_Adjoint`, whose backward is `_Resize`."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, shape: Shape) -> Tensor:
        ctx.source = rows, columns = (source.shape[0], source.shape[1])
        made, wide, size = source.new_empty(shape), _wide(source), _tile_size(source)
        for across in _spans(shape[1], size):
            by_column = _remember(_taps, columns, shape[1], across, wide)
            for down in _spans(shape[0], size // (across[1] - across[0])):
                first, last = _sources(rows, shape[0], down)
                low, high, near, far = _remember(_taps, rows, shape[0], down, wide)
                part = _mix(wide[first:last], 1, by_column)
                part = _mix(part, 0, (low - first, high - first, near, far))
                made[slice(*down), slice(*across)] = part
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(gradient, ctx.source), None


class _Adjoint(Function):
    """Apply the transpose of a resize: each source value gathers from the outputs it is read by."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Shape) -> Tensor:
        ctx.shape = rows, columns = (gradient.shape[0], gradient.shape[1])
        made, size = gradient.new_empty(source), _tile_size(gradient)
        for across in _spans(source[1], size * source[1] // max(source[1], columns)):
            left, right = _readers(source[1], columns, across)
            by_column = _remember(_bags, source[1], columns, across, gradient)
            height = size // (right - left + 1) * source[0] // max(source[0], rows)
            for down in _spans(source[0], height):
                top, bottom = _readers(source[0], rows, down)
                by_row = _remember(_bags, source[0], rows, down, gradient)
                part = _gather(_wide(gradient[top:bottom, left:right]), by_row)
                made[slice(*down), slice(*across)] = _gather(part.T, by_column).T
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Resize.apply(gradient, ctx.shape), None


def _mix(source: Tensor, dim: int, taps: Taps) -> Tensor:
    """Resize one dimension; the result is bit-equal however the outputs are tiled."""
    low, high, near, far = taps
    if dim == 0:
        near, far = near[:, None], far[:, None]
    # Products are rounded before they are added; else the last bit would depend on the layout.
    return source.index_select(dim, low).mul_(near).add_(source.index_select(dim, high).mul_(far))


def _gather(gradient: Tensor, bags: Bags) -> Tensor:
    places, begins, shares = bags
    return F.embedding_bag(
        places, gradient.contiguous(), begins, mode="sum", per_sample_weights=shares
    )


def _taps(before: int, after: int, outputs: Span, like: Like) -> Taps:
    """Return for each output of a span its two source positions and their weights."""
    dtype, device = like
    at = _positions(before, after, torch.arange(*outputs, device=device))
    low = at // (2 * after)
    rest = at - low * (2 * after)
    near, far = (part.to(dtype) / (2 * after) for part in (2 * after - rest, rest))
    return low, (low + 1).clamp(max=before - 1), near, far


def _bags(before: int, after: int, sources: Span, like: Like) -> Bags:
    """Return the outputs that each source value of a span gathers, where each begins, the weights.

    Outputs are relative to the first of the span's `_readers`.
    """
    (start, stop), (dtype, device) = sources, like
    place = torch.arange(start - 1, stop + 1, device=device)
    first = -((after - before + 2 * after * place) // (-2 * before))
    first = first.clamp(0, after).where(place > 0, 0).where(place < before, after)
    counts = first[2:] - first[:-2]
    begins = counts.cumsum(0) - counts
    edges = [_first_reader(before, after, p) for p in (start - 1, start, stop - 1, stop)]
    total = edges[2] + edges[3] - edges[0] - edges[1]  # of counts; needs no GPU sync
    owner = place[1:-1].repeat_interleave(counts, output_size=total)
    outputs = torch.arange(total, device=device)
    outputs += (first[:-2] - begins).repeat_interleave(counts, output_size=total)
    away = (_positions(before, after, outputs) - 2 * after * owner).abs()
    return outputs - edges[0], begins, (2 * after - away).to(dtype) / (2 * after)


def _positions(before: int, after: int, outputs: Tensor) -> Tensor:
    """Return the source positions of outputs, times 2 `after`."""
    return ((2 * outputs + 1) * before - after).clamp(0, 2 * after * (before - 1))


def _sources(before: int, after: int, outputs: Span) -> Span:
    """Return the source span that a span of outputs reads."""
    low, high = (
        max(0, (2 * i + 1) * before - after) // (2 * after) for i in (outputs[0], outputs[1] - 1)
    )
    return low, min(before, high + 2)


def _readers(before: int, after: int, sources: Span) -> Span:
    """Return the span of outputs that read any value of a source span."""
    first = _first_reader(before, after, sources[0] - 1)
    return first, _first_reader(before, after, sources[1])


def _first_reader(before: int, after: int, position: int) -> int:
    """Return the first output whose lower source position is at least `position`."""
    if not 0 < position < before:
        return 0 if position <= 0 else after
    return max(0, -((after - before + 2 * after * position) // (-2 * before)))


def _remember(make: Callable[..., Any], before: int, after: int, span: Span, like: Tensor) -> Any:
    """Return `_taps` or `_bags`, cached if they are short."""
    asked = before, after, span, _like(like)
    return _remembered(make, *asked) if max(before, after) <= SHORT else make(*asked)


@lru_cache(maxsize=512)
def _remembered(make: Callable[..., Any], *asked: Any) -> Any:
    with torch.inference_mode(False):
        return make(*asked)


def _like(tensor: Tensor) -> Like:
    return torch.promote_types(tensor.dtype, torch.float32), tensor.device


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in at least fp32."""
    return tensor.to(_like(tensor)[0])


def _tile_size(like: Tensor) -> int:
    return TILE if like.is_cpu else LARGE_TILE


def _spans(length: int, size: int) -> Iterator[Span]:
    """Cut a length into spans of `size`, at least 1."""
    size = max(1, size)
    return ((start, min(start + size, length)) for start in range(0, length, size))
