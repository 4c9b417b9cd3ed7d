"""Make small inputs for the networks that match sentences with images."""

import torch
from torch import Tensor

from npas.models import Input, InputSpec

WORD, REGION, KNOWN = 6, 7, 11  # numbers of a word and of a region, and words that have a number


def spec(word: int = WORD, region: int = REGION, each: int = 2, places: int = 5) -> InputSpec:
    """Return what a task of so many sentences an image, and 4 regions, asks for."""
    inputs = {
        "words": Input((each, places, word)),
        "lengths": Input((each,), True),
        "regions": Input((4, region)),
        "ids": Input((each, places), True),
    }
    return InputSpec((), 1, outputs="match", inputs=inputs)


def inputs(images: int = 3, each: int = 2, places: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Draw sentences of 1 to `places` words, with zeros after them, and regions."""
    rng = torch.Generator().manual_seed(seed)
    lengths_BP = torch.randint(1, places + 1, (images, each), generator=rng)
    inside_BPT = torch.arange(places) < lengths_BP[..., None]
    ids_BPT = torch.randint(1, KNOWN, (images, each, places), generator=rng)
    return {
        "words": torch.randn(images, each, places, WORD, generator=rng) * inside_BPT[..., None],
        "lengths": lengths_BP,
        "regions": torch.randn(images, 4, REGION, generator=rng),
        "ids": ids_BPT * inside_BPT,
    }


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
