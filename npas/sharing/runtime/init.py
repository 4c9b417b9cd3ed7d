"""Initialize a shared network so that each generated weight has its dense layer's variance.

Banks are normal, coefficients have rows of norm one where possible, and a fixed scale per layer
sets the standard deviation. Shapes: L layers, K templates.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from npas.sharing.generators import schemes
from npas.sharing.generators.bases import BASES, CHANNELS, basis_variance, initial_mixture
from npas.sharing.generators.codebook import CODEBOOK, initial_indices
from npas.sharing.generators.coefficients import (
    FIXED,
    GENERATORS,
    OF_DEPTH,
    ROWS,
    at_depths,
    released_rows,
    start_rows,
)
from npas.sharing.generators.low_rank import draw_right, factor_names
from npas.sharing.generators.upsample import UPSAMPLERS, mean_variance
from npas.sharing.layers import SCALES, bank_name, generator_name, upsampler_name
from npas.sharing.layout.allocation import Allocation, GroupAllocation, learned_name

PIECE = 1 << 24
"""Values of a bank that are drawn at a time, which bounds the memory of fp32 draws."""
SAME_SPREAD = 1.1
"""Layers of one shape count as initialized alike up to this ratio of standard deviations."""
NOISE = 6.0
"""Two draws of n normal values differ in spread by at most exp(NOISE / sqrt(n)), at 6 sigma."""


def spread(values: Tensor) -> float:
    """Return the root mean square, summed in fp64 in pieces that fit a CPU's cache."""
    squares = (part.double().square().sum() for part in values.reshape(-1).split(1 << 17))
    return math.sqrt(sum(map(float, squares)) / values.numel())


def assign_scales(
    allocation: Allocation, spreads: Mapping[str, float], tolerance: float = SAME_SPREAD
) -> tuple[Allocation, list[float]]:
    """Return the allocation with each layer's index of its scale, and each scale's deviation.

    `spreads` are the layers' standard deviations by name. Layers of one group, shape, mixing and K
    have one scale while their spreads are within `tolerance` of the least, so that sampling noise
    does not give equal layers different scales. Its deviation is the root mean square of theirs.
    """
    kinds: dict[tuple[int, tuple[int, ...], str, int], list[str]] = {}
    for g, group in enumerate(allocation.groups):
        for layer in group.layers:
            kind = (g, layer.shape, layer.mixing, len(layer.templates))
            kinds.setdefault(kind, []).append(layer.name)
    scale_of: dict[str, int] = {}
    alike: list[list[float]] = []  # the spreads of the layers of each scale
    for (_, shape, *_), names in kinds.items():
        least, same = -1.0, max(tolerance, math.exp(NOISE / math.sqrt(math.prod(shape))))
        for name in sorted(names, key=spreads.__getitem__):
            if spreads[name] > same * least:
                alike.append([])
                least = spreads[name]
            scale_of[name] = len(alike) - 1
            alike[-1].append(spreads[name])
    deviations = [math.sqrt(sum(x**2 for x in found) / len(found)) for found in alike]
    return allocation.map(lambda layer: replace(layer, scale=scale_of[layer.name])), deviations


def initialize(
    root: nn.Module, allocation: Allocation, spreads: Sequence[float], seed: int
) -> None:
    """Draw banks, coefficients and upsamplers, and set the scales.

    `spreads` are the standard deviations that the scales produce (from `assign_scales`). A bank is
    normal with the size-weighted root mean square of its layers' spreads: scales are near one.
    """
    rng = torch.Generator().manual_seed(seed)
    scales = torch.ones(len(spreads))
    index = 0
    for g, group in enumerate(allocation.groups):
        if not group.bank:
            index += len(group.layers)
            continue
        weight = sum(layer.size for layer in group.layers)
        bank_spread = math.sqrt(
            sum(layer.size * spreads[layer.scale] ** 2 for layer in group.layers) / weight
        )
        for piece in root.get_parameter(bank_name(g)).detach().split(PIECE):
            in_place = piece.dtype == torch.float32 and piece.is_cpu
            drawn = piece if in_place else torch.empty(len(piece))
            piece.copy_(drawn.normal_(generator=rng).mul_(bank_spread))
        norms = _draw_generators(root, g, group, rng, allocation.scheme.coefficient_init)
        channels = _draw_channels(group, rng, allocation.scheme.coefficient_init)
        variances: dict[int, list[float]] = {}
        for i, layer in enumerate(group.layers):
            variance, drawn = 1.0, None
            if schemes.is_foreign(layer.upsampler):
                bank = root.get_parameter(bank_name(g)).detach()
                read = bank[layer.templates[0] :][: layer.template_size].float().cpu()
                drawn, square = schemes.start(read, layer, rng)
                variance = square / bank_spread**2
            elif layer.learned[0]:
                assert layer.upsampler is not None
                if layer.upsampler == CODEBOOK:
                    drawn = initial_indices(layer)
                elif layer.upsampler in BASES:
                    drawn = initial_mixture(layer, rng)
                elif layer.upsampler == CHANNELS:
                    drawn = channels[i].unsqueeze(1).expand(layer.learned)
                else:
                    drawn = UPSAMPLERS[layer.upsampler].initial(layer.learned, rng)
            if drawn is not None:
                _set(root, learned_name(index, layer), drawn)
            if layer.rank:
                right = factor_names(index)[1]
                _set(root, right, draw_right(root.get_parameter(right).shape, rng))
            if layer.upsampler == "inter":
                variance = mean_variance(layer.source, layer.matrix)
            elif layer.upsampler in BASES:
                variance = basis_variance(layer)
            variances.setdefault(layer.scale, []).append(variance * norms[i] ** 2)
            index += 1
        for scale, found in variances.items():
            gain = math.sqrt(sum(found) / len(found))
            scales[scale] = spreads[scale] / (bank_spread * gain)
    _set(root, SCALES, scales)


def initialize_as_released(root: nn.Module, allocation: Allocation, seed: int) -> None:
    """Draw banks and coefficients as the released code does; all scales are one.

    Banks are He-normal as for 3x3 filters. Then each template is drawn again, He-normal for its own
    layer, unless the layer is upsampled. Rare shapes come first, of equally common ones the last;
    overlapping templates keep the last draw. Coefficients are orthogonal over all layers of one K.
    (The released code leaves a bank's end uninitialized; here it is drawn.)
    """
    rng = torch.Generator().manual_seed(seed)
    index = 0
    for g, group in enumerate(allocation.groups):
        if group.bank:
            bank = torch.randn(group.bank, generator=rng) * math.sqrt(2 / 9)
            common = Counter(layer.shape for layer in group.layers)
            first = {shape: i for i, shape in enumerate(common)}
            for layer in sorted(
                group.layers, key=lambda layer: (common[layer.shape], -first[layer.shape])
            ):
                for start in () if layer.upsampler else layer.templates:
                    spread = math.sqrt(2 / (layer.size // layer.shape[0]))
                    drawn = torch.randn(layer.size, generator=rng) * spread
                    bank[start : start + layer.size] = drawn
            _set(root, bank_name(g), bank)
            _draw_generators(root, g, group, rng, allocation.scheme.coefficient_init)
            for templates, layers in group.rows.items():
                name = generator_name("coefficients", g, templates[1])
                if name in root._parameters:
                    _set(root, name, released_rows(len(layers), templates[1], rng))
        for layer in group.layers:
            if layer.learned[0]:
                spread = 1 / math.prod(layer.learned)
                drawn = torch.full(layer.learned, spread)
                if layer.upsampler == "wavg":
                    drawn = nn.init.orthogonal_(drawn, generator=rng)
                _set(root, upsampler_name(index), drawn)
            index += 1
    _set(root, SCALES, torch.ones(root.get_buffer(SCALES).shape))


def _draw_channels(group: GroupAllocation, rng: torch.Generator, start: str) -> dict[int, Tensor]:
    """Return the initial coefficients, K, of all channels of a layer, by its index in the group."""
    alike: dict[tuple[int, int], list[int]] = {}
    for i, layer in enumerate(group.layers):
        if layer.upsampler == CHANNELS:
            alike.setdefault((layer.size, layer.learned[0]), []).append(i)
    drawn: dict[int, Tensor] = {}
    for (_, templates), indices in alike.items():
        rows_LK = start_rows(start, [len(indices)], templates, rng)
        drawn |= dict(zip(indices, rows_LK, strict=True))
    return drawn


def _draw_generators(
    root: nn.Module, g: int, group: GroupAllocation, rng: torch.Generator, start: str
) -> list[float]:
    """Draw the generators' parameters by `coefficient_init`; return the coefficients' norms, L.

    A norm is the standard deviation of a mixture of templates of unit variance. The norms of a
    `released` start, which may be below one, count as one, so that scales do not undo them.
    """
    norms = [1.0] * len(group.layers)
    depths = layer_depths(group)
    for (mixing, templates), indices in group.rows.items():
        generator, sizes = GENERATORS[mixing], [group.layers[i].size for i in indices]
        alpha_LK = torch.empty(len(indices), templates)
        if start in OF_DEPTH:  # rows are in the layers' order
            sizes = [0] * len(indices)
            alpha_LK = at_depths(start, [depths[i] for i in indices], templates)
        elif generator.shapes(1, 1):
            counts = list(Counter(sorted(sizes)).values())
            alpha_LK = start_rows(start, counts, templates, rng)
        drawn = generator.initial(alpha_LK, rng)
        by_size = sorted(range(len(indices)), key=sizes.__getitem__)
        for kind, values in drawn.items():
            if kind in ROWS:
                values[by_size] = values.clone()
            _set(root, generator_name(kind, g, templates), values)
        if mixing not in ("wavg", "emb", "mlp", FIXED):  # those have norm one, or a released start
            alpha_LK = generator.coefficients(drawn, len(indices), templates)
            for i, norm in zip(indices, alpha_LK.norm(dim=1).tolist(), strict=True):
                norms[i] = norm
    return norms


def layer_depths(group: GroupAllocation) -> list[float]:
    """Return each layer's depth among the layers of its shape, from -1 (first) to 1 (last).

    A layer alone has depth 1, where every function of depth uses all templates.
    """
    number: Counter[tuple[int, ...]] = Counter(layer.shape for layer in group.layers)
    seen: Counter[tuple[int, ...]] = Counter()
    depths = []
    for layer in group.layers:
        last = number[layer.shape] - 1
        depths.append(2 * seen[layer.shape] / last - 1 if last else 1.0)
        seen[layer.shape] += 1
    return depths


@torch.no_grad()
def _set(root: nn.Module, name: str, values: Tensor) -> None:
    tensor = root._parameters[name] if name in root._parameters else root._buffers[name]
    assert tensor is not None and tensor.shape == values.shape, (name, values.shape)
    tensor.copy_(values)
