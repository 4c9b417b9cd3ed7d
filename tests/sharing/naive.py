"""Generate weights by the definition, slice, mix and resize, in float64."""

import torch

from npas.sharing.generators.hashing import _step


def naive_weights(plan, tensors):
    """Return every shared layer's weight, of the shared network's tensors by name."""
    weights = {}
    number = 0
    for g, group in enumerate(plan.groups):
        seen = {}
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


def mixed(layer, g, row, tensors):
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


def stretched(layer, values, learned):
    """Return as many values as the layer has weights."""
    length = len(values)
    place = torch.arange(layer.size)
    if layer.upsampler is None:
        return values
    if layer.upsampler == "inter":
        rows, columns = layer.source
        height = 1 if rows == 1 else sides(layer)[0]
        source = values.reshape(rows, columns)
        return linear(rows, height) @ source @ linear(columns, layer.size // height).T
    if layer.upsampler == "repeat":
        return values[place % length]
    if layer.upsampler == "hash":
        return hashed(layer, values)
    assert learned is not None
    if layer.upsampler == "channels":
        k, out = learned.shape
        starts = [i * (length - layer.size) // max(k - 1, 1) for i in range(k)]
        templates = torch.stack([values[s : s + layer.size].view(out, -1) for s in starts])
        return torch.einsum("kr,krn->rn", learned, templates).reshape(-1)
    if layer.upsampler == "tiles":
        return from_tiles(layer, values, learned)
    if layer.upsampler in ("rows", "columns"):
        return from_basis(layer, values, learned)
    if layer.upsampler == "mask":
        copy, within = place // length, place % length
        factors = learned[(copy - 1).clamp(min=0), within % 9]
        return values[within] * torch.where(copy == 0, 1.0, factors)
    half = (length + 1) // 2
    segment, within = place // half, place % half
    return (
        learned[segment, 0] * values[within] + learned[segment, 1] * values[length - half + within]
    )


def hashed(layer, values):
    """Return the bank's rows, signed, in the order in which sweeps over it hand them out."""
    row = min(32, len(values))
    rows = -(-len(values) // row)
    found = []
    for number in range(layer.first, layer.first + layer.size):
        chunk = number // row
        sweep, place = divmod(chunk, rows)
        start = (place * _step(rows, sweep) + sweep * (rows // 3 + 1)) % rows * row
        sign = (chunk * 2654435761 + sweep * 40503) % 2**32 // 2**15 % 2 * 2 - 1
        found.append(sign * values[min(start, len(values) - row) + number % row])
    return torch.stack(found)


def sides(layer):
    """Return the sides of a weight's matrix: its first dimension above 1, and the others."""
    out = next((n for n in layer.shape if n > 1), 1)
    return out, layer.size // out


def from_basis(layer, values, learned):
    """Return the product of mixtures and vectors, either filled up with zeros."""
    out, rest = sides(layer)
    rows, length = (out, rest) if layer.upsampler == "rows" else (rest, out)
    vectors = -(-len(values) // length)
    basis, mixtures = values.new_zeros(vectors * length), values.new_zeros(vectors * rows)
    basis[: len(values)], mixtures[: learned.numel()] = values, learned.reshape(-1)
    weight = mixtures.view(vectors, rows).T @ basis.view(vectors, length)
    return (weight if layer.upsampler == "rows" else weight.T).reshape(-1)


def from_tiles(layer, values, learned):
    """Return the matrix, tile by tile: mixtures of vectors, either filled up with zeros."""
    (rows, columns), (height, width) = sides(layer), layer.source
    corners = [(r, c) for r in range(0, rows, height) for c in range(0, columns, width)]
    vectors = -(-len(values) // (height * width))
    basis = values.new_zeros(vectors, height * width)
    basis.view(-1)[: len(values)] = values
    mixtures = values.new_zeros(vectors, len(corners))
    mixtures.view(-1)[: learned.numel()] = learned.reshape(-1)
    weight = values.new_zeros(rows + height, columns + width)
    for (r, c), alpha in zip(corners, mixtures.T, strict=True):
        tile = sum(alpha[k] * basis[k] for k in range(vectors))
        weight[r : r + height, c : c + width] = tile.view(height, width)
    return weight[:rows, :columns].reshape(-1)


def linear(before, after):
    """Return the matrix, after x before, that resizes linearly between half-pixel centres."""
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        at = max(0.0, (i + 0.5) * before / after - 0.5)
        low = min(int(at), before - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, before - 1)] += at - low
    return matrix
