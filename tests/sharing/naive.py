"""Generate weights as one would write it down: slice, mix, stretch, in float64. No tricks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from npas.sharing.allocation import Allocation, LayerAllocation


def naive_weights(plan: Allocation, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every shared layer's weight, of the shared network's tensors by name."""
    weights = {}
    number = 0
    for g, group in enumerate(plan.groups):
        seen: dict[tuple[str, int], int] = {}
        for layer in group.layers:
            if layer.templates:
                key = (layer.mixing, len(layer.templates))
                row = seen.get(key, 0)
                seen[key] = row + 1
                values = mixed(layer, g, row, tensors) * tensors["npas_scales"][layer.scale]
                learned = tensors.get(f"npas_upsampler_{number}")
                weights[layer.name] = stretched(layer, values, learned).reshape(layer.shape)
                if layer.rank:
                    factors = tensors[f"npas_left_{number}"], tensors[f"npas_right_{number}"]
                    weights[layer.name] = weights[layer.name] + (factors[0] @ factors[1]).reshape(
                        layer.shape
                    )
            number += 1
    return weights


def mixed(layer: LayerAllocation, g: int, row: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted sum of the layer's templates."""
    bank = tensors[f"npas_bank_{g}"]
    k = len(layer.templates)
    if layer.mixing == "none":
        alpha = bank.new_ones(1)
    elif layer.mixing == "avg":
        alpha = torch.full((k,), 1 / k).to(bank)  # a constant, rounded to fp32
    elif layer.mixing == "wavg":
        alpha = tensors[f"npas_coefficients_{g}_{k}"][row]
    elif layer.mixing == "fixed":
        alpha = tensors[f"npas_fixed_{g}_{k}"][row]
    else:
        embedding = tensors[f"npas_embeddings_{g}_{k}"][row]
        alpha = tensors[f"npas_affine_{g}_{k}"].T @ embedding + tensors[f"npas_shift_{g}_{k}"]
    total = bank.new_zeros(layer.template_size)
    for i, start in enumerate(layer.templates):
        total = total + alpha[i] * bank[start : start + layer.template_size]
    return total


def stretched(layer: LayerAllocation, values: Tensor, learned: Tensor | None) -> Tensor:
    """Return as many values as the layer has weights."""
    length = len(values)
    place = torch.arange(layer.size)
    if layer.upsampler is None:
        return values
    if layer.upsampler == "inter":
        rows, columns = layer.source
        height = 1 if rows == 1 else layer.shape[0]
        source = values.reshape(rows, columns)
        return linear(rows, height) @ source @ linear(columns, layer.size // height).T
    if layer.upsampler == "repeat":
        return values[place % length]
    assert learned is not None
    if layer.upsampler == "mask":
        copy, within = place // length, place % length
        factors = learned[(copy - 1).clamp(min=0), within % 9]
        return values[within] * torch.where(copy == 0, 1.0, factors)
    half = (length + 1) // 2
    segment, within = place // half, place % half
    return (
        learned[segment, 0] * values[within] + learned[segment, 1] * values[length - half + within]
    )


def linear(before: int, after: int) -> Tensor:
    """Return the matrix, after x before, that resizes linearly between half-pixel centres."""
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        at = max(0.0, (i + 0.5) * before / after - 0.5)
        low = min(int(at), before - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, before - 1)] += at - low
    return matrix
