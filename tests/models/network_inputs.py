"""Make small inputs for the networks that match phrases with regions, or sentences with images."""

import torch

from npas import models
from npas.models import Input, InputSpec

WORD, REGION, BOX, KNOWN = 6, 7, 5, 11  # numbers of each, and words that have a number
SIMNET = [  # its options
    {}, {"boxes": False}, {"normalize": "regions"}, {"phrase": "attention"}, {"phrase": "gru"},
    {"embeddings": 3}, {"embeddings": 2, "phrase": "gru"},
]  # fmt: skip


def spec(outputs, word=WORD, region=REGION):
    """Return what a task asks for: of 3 texts of 5 words and 4 regions an image."""
    inputs = {
        "words": Input((3, 5, word)),
        "lengths": Input((3,), True),
        "regions": Input((4, region)),
        "boxes": Input((4, BOX)),
        "ids": Input((3, 5), True),
    }
    inputs.pop("ids" if outputs == "regions" else "boxes")
    return InputSpec((), 1, outputs=outputs, inputs=inputs)


def inputs(outputs, images=2, texts=3, seed=0):
    """Draw texts of 1 to 5 words, with zeros after them, and regions."""
    rng = torch.Generator().manual_seed(seed)
    lengths_BP = torch.randint(1, 6, (images, texts), generator=rng)
    inside_BPT = torch.arange(5) < lengths_BP[..., None]
    given = {
        "words": torch.randn(images, texts, 5, WORD, generator=rng) * inside_BPT[..., None],
        "lengths": lengths_BP,
        "regions": torch.randn(images, 4, REGION, generator=rng),
    }
    if outputs == "regions":
        return given | {"boxes": torch.rand(images, 4, BOX, generator=rng)}
    ids_BPT = torch.randint(1, KNOWN, (images, texts, 5), generator=rng)
    return given | {"ids": ids_BPT * inside_BPT}


def build(family, **keys):
    """Build a small network of a family for such inputs."""
    torch.manual_seed(0)
    module = models.family(family)
    return models.build(module.Config(**keys), spec(module.OUTPUTS[0]))


def count(family, word=300, **keys):
    """Count the parameters at full size: of 300 numbers a word, 2048 a region."""
    module = models.family(family)
    with torch.device("meta"):
        model = models.build(module.Config(**keys), spec(module.OUTPUTS[0], word, 2048))
    return sum(parameter.numel() for parameter in model.parameters())
