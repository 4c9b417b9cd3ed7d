"""Build the DenseNets for small images (Huang et al., CVPR 2017, arXiv 1608.06993).

Three blocks of layers, each of which appends `growth` channels to all that came before it; between
the blocks a 1x1 conv and average pooling by 2. In the BC form each layer first narrows to 4 growth
channels by a 1x1 conv, and what lies between the blocks halves the channels.

    100-24, plain: 27,249,082 parameters for 10 classes; BC 190-40: 25,624,430
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.models._initialization import initialize

PLAIN_STEM, NARROWED = 16, 4
# Beyond these a typing error, not a network: building it would fill the memory first.
MOST_DEPTH, MOST_GROWTH = 1000, 1000


@dataclass
class Config:
    """The `model.*` keys of a DenseNet. ValueError for a depth that cannot be built."""

    family: str = "densenet"
    depth: int = 100
    growth: int = 24
    bottleneck: bool = False  # the BC form
    dropout: float = 0.0  # behind every 3x3 conv

    def __post_init__(self) -> None:
        if self.depth > MOST_DEPTH:
            raise ValueError(f"model.depth must be at most {MOST_DEPTH}, got {self.depth}")
        step = 6 if self.bottleneck else 3
        if self.depth < step + 4 or (self.depth - 4) % step:
            below = max(step + 4, self.depth - (self.depth - 4) % step)
            nearest = f"{below} or {below + step}" if self.depth > below else str(below)
            raise ValueError(
                f"model.depth={self.depth}: a DenseNet{'-BC' * self.bottleneck} has {step}n + 4"
                f" layers; the nearest is {nearest}"
            )
        if not 1 <= self.growth <= MOST_GROWTH:
            raise ValueError(f"model.growth must be 1 to {MOST_GROWTH}, got {self.growth}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: give a rate from 0 up to, not with, 1")


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the DenseNet of `config` for images of `spec`, of 4 pixels a side or more."""
    return DenseNet(config, spec.input_shape[0], spec.num_classes)


class Layer(nn.Module):
    """Append `growth` channels computed from all channels so far: BxCxHxW -> Bx(C+growth)xHxW."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.narrow: nn.Module | None = None
        if config.bottleneck:
            narrowed = NARROWED * config.growth
            self.narrow = activated(channels, nn.Conv2d(channels, narrowed, 1, bias=False))
            channels = narrowed
        conv = nn.Conv2d(channels, config.growth, 3, padding=1, bias=False)
        self.grow = activated(channels, conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.grow(x if self.narrow is None else self.narrow(x))
        return torch.cat((x, F.dropout(out, self.dropout, self.training)), dim=1)


class DenseNet(nn.Module):
    """Classify images, BxCxHxW -> B x num_classes logits."""

    def __init__(self, config: Config, in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers = (config.depth - 4) // (6 if config.bottleneck else 3)
        channels = 2 * config.growth if config.bottleneck else PLAIN_STEM
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        blocks = []
        for block in range(3):
            if block:
                kept = channels // 2 if config.bottleneck else channels
                conv = nn.Conv2d(channels, kept, 1, bias=False)
                blocks.append(activated(channels, conv, nn.AvgPool2d(2)))
                channels = kept
            stack = [Layer(channels + n * config.growth, config) for n in range(layers)]
            blocks.append(nn.Sequential(*stack))
            channels += layers * config.growth
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def activated(channels: int, *modules: nn.Module) -> nn.Sequential:
    """Put batch norm and ReLU before modules that read this many channels."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), *modules)
