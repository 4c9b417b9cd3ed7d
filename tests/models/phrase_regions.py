"""Make small inputs for the networks that match phrases with regions."""

import torch
from torch import Tensor

from npas.models import Input, InputSpec

WORD, REGION, BOX = 6, 7, 5  # numbers of each


def spec(word: int = WORD, region: int = REGION, places: int = 4) -> InputSpec:
    """Return what a task of 3 phrases and 5 regions an image asks for."""
    inputs = {
        "words": Input((3, places, word)),
        "lengths": Input((3,), True),
        "regions": Input((5, region)),
        "boxes": Input((5, BOX)),
    }
    return InputSpec((), 1, outputs="regions", inputs=inputs)


def inputs(
    images: int = 2, phrases: int = 3, regions: int = 5, places: int = 4
) -> dict[str, Tensor]:
    """Draw phrases of 1 to `places` words, with zeros after them, and regions."""
    lengths_BP = torch.randint(1, places + 1, (images, phrases))
    inside_BPT = torch.arange(places) < lengths_BP[..., None]
    return {
        "words": torch.randn(images, phrases, places, WORD) * inside_BPT[..., None],
        "lengths": lengths_BP,
        "regions": torch.randn(images, regions, REGION),
        "boxes": torch.rand(images, regions, BOX),
    }
