"""Make a layer's flat weight from the values that it reads from its bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from npas.sharing import schemes
from npas.sharing.bases import BASES, CHANNELS, basis_weight, channel_weight
from npas.sharing.hashing import HASH, hashed_weight
from npas.sharing.upsample import UPSAMPLERS

if TYPE_CHECKING:
    from npas.sharing.allocation import LayerAllocation


def shaped(values: Tensor, learned: Tensor | None, layer: LayerAllocation) -> Tensor:
    """Return the flat weight; `learned` are the upsampler's weights, None if it has none."""
    if layer.upsampler is None:
        return values
    if layer.upsampler == HASH:
        return hashed_weight(values, layer.source[1], layer.size, layer.first)
    if layer.upsampler in BASES:
        assert learned is not None
        return basis_weight(values, learned, layer)
    if layer.upsampler == CHANNELS:
        assert learned is not None
        return channel_weight(values, learned, layer)
    if layer.upsampler not in UPSAMPLERS:
        return schemes.weight(values, learned, layer)
    upsampler = UPSAMPLERS[layer.upsampler]
    return upsampler.weight(values, learned, layer.source, layer.matrix)
