"""Classify images with a multilayer perceptron: a model family of npas."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import nn

from npas.models import InputSpec


@dataclass
class Config:
    """The `model.*` keys of the family. ValueError for what cannot be."""

    family: str = "mlp"
    width: int = 256
    layers: int = 4

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1:
            raise ValueError("model.width and model.layers must be at least 1")


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the network for a task's inputs."""
    sizes = [prod(spec.input_shape), *[config.width] * config.layers]
    hidden = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], spec.num_classes))
