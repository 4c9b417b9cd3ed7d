"""Validate the layers of a stored plan, which may have been edited or damaged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from npas.sharing import schemes
from npas.sharing.bases import BASES, CHANNELS, is_basis
from npas.sharing.coefficients import GENERATORS
from npas.sharing.hashing import HASH
from npas.sharing.layers import matrix_form
from npas.sharing.upsample import UPSAMPLERS, WINDOW

if TYPE_CHECKING:
    from npas.sharing.allocation import LayerAllocation

MOST_WEIGHTS = 1 << 50


def layer_fault(layer: LayerAllocation, bank: int, generator: str) -> str:
    """Return an error message for an invalid layer in a bank of this size, or "" if valid."""
    count, size = len(layer.templates), layer.template_size
    if min(layer.shape, default=0) < 1 or layer.scale < 0:
        return "shape must have whole numbers above 0, and scale must not be negative"
    if layer.mixing not in ("none", *GENERATORS):
        return f"mixing must be none, {', '.join(GENERATORS)}"
    makers = (*UPSAMPLERS, *BASES, CHANNELS, HASH)
    is_foreign = layer.upsampler == generator and schemes.is_foreign(generator)
    if layer.upsampler not in (None, *makers) and not is_foreign:
        return f"upsampler must be null, {', '.join(makers)}"
    if not bank:
        plain = type(layer)(layer.name, layer.shape, layer.kind, scale=layer.scale)
        return "" if layer == plain else "its group has no bank, so it must be an ordinary one"
    if not count or not 0 < size <= bank:
        return "it must have templates of a size within the bank"
    if list(layer.templates) != sorted(layer.templates):
        return "templates must go from low to high"
    if layer.templates[0] < 0 or layer.templates[-1] > bank - size:
        return "templates must lie in the bank, between 0 and bank - template_size"
    paid = 0 if layer.mixing == "none" else GENERATORS[layer.mixing].count([count])
    # Coefficients may be paid from the last template's values; resized maps overlap.
    if layer.upsampler != "inter" and (count - 1) * size >= bank + paid:
        return "templates are more than its bank can hold"
    if not 0 <= layer.correction < layer.size:
        return "rank must cost less than its weight"
    if layer.mixing == "none" and count > 1:
        return "mixing=none takes one template"
    source = (1, size)
    if layer.upsampler == "inter" and min(layer.source) > 0:
        source = layer.source
    if layer.upsampler is None:
        source = (0, 0)
    if layer.source != source or (layer.upsampler and math.prod(source) != size):
        return "source must be what its upsampler reads"
    if layer.upsampler is None and size != layer.size:
        return "template_size must be its weight's size, since nothing upsamples it"
    # The learned weights must be enough to make all values of the layer.
    rows, columns = layer.learned
    learned = layer.learned == (0, 0)
    if layer.upsampler == "mask":
        learned = columns == WINDOW and rows > 0 and size * (1 + rows) >= layer.size
    if layer.upsampler == "wavg":
        learned = columns == 2 and rows > 0 and -(-size // 2) * rows >= layer.size
    if layer.upsampler == CHANNELS:
        learned = columns == matrix_form(layer.shape)[0] and layer.size <= size <= rows * layer.size
    counts_weights = is_foreign or layer.upsampler == HASH
    if layer.first and (not counts_weights or not 0 < layer.first < MOST_WEIGHTS):
        return "first must be that of a hashed layer, and not negative"
    if layer.upsampler == HASH and (size != bank or layer.mixing != "none"):
        return "a hashed layer must read its whole bank as one template, and mix none"
    if is_foreign:
        learned = schemes.learned_shape(generator, layer.shape, size) == layer.learned
    if layer.upsampler in BASES or layer.kept:
        learned = layer.upsampler in BASES and is_basis(layer)
    return "" if learned else "learned must be the shape that its upsampler needs"
