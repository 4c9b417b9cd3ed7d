"""DenseNets for small images (Huang et al., CVPR 2017, arXiv 1608.06993).

Three blocks of layers, each of which appends `growth` channels to its input; between the blocks a
1x1 conv and average pooling by 2. In the BC form each layer first reduces the channels to 4 growth
by a 1x1 conv, and the 1x1 convs between the blocks halve the channels.

    100-24, plain: 27,249,082 parameters for 10 classes; BC 190-40: 25,624,430
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, Reader, _checks
from npas.models._cnn import conv3x3, initialize
from npas.utils.checks import Ranged

PLAIN_STEM, NARROWED = 16, 4


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a DenseNet."""

    family: str = "densenet"
    depth: int = 100
    growth: Annotated[int, "[1, 1000]"] = 24
    bottleneck: bool = False  # the BC form
    dropout: Annotated[float, "[0, 1)"] = 0.0  # after every 3x3 conv

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = f"DenseNet{'-BC' * self.bottleneck}"
        _checks.depth(self, kind, step=6 if self.bottleneck else 3, rest=4)


class Layer(nn.Module):
    """Append `growth` channels computed from the input: BxCxHxW -> Bx(C+growth)xHxW."""

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.narrow: nn.Module = nn.Identity()
        if config.bottleneck:
            narrowed = NARROWED * config.growth
            self.narrow = activated(channels, nn.Conv2d(channels, narrowed, 1, bias=False))
            channels = narrowed
        self.grow = activated(channels, conv3x3(channels, config.growth))

    def forward(self, x: Tensor) -> Tensor:
        out = self.grow(self.narrow(x))
        return torch.cat((x, F.dropout(out, self.dropout, self.training)), dim=1)


class DenseNet(nn.Module):
    """Classify images of at least 4 pixels a side, BxCxHxW -> B x num_classes logits."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        layers = (config.depth - 4) // (6 if config.bottleneck else 3)
        channels = 2 * config.growth if config.bottleneck else PLAIN_STEM
        self.stem = conv3x3(spec.input_shape[0], channels)
        blocks: list[nn.Module] = []
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
        self.classifier = nn.Linear(channels, spec.num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def activated(channels: int, *modules: nn.Module) -> nn.Sequential:
    """Put batch norm and ReLU before modules with this many input channels."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), *modules)


def filters(network: DenseNet) -> dict[str, list[Reader]]:
    """Return the readers of each layer's convs: all later layers of its block, and what follows."""
    found: dict[str, list[Reader]] = {}
    for b, block in enumerate(network.blocks):
        layers: list[Any] = [*block.children()]
        if not isinstance(layers[0], Layer):
            continue
        names = [f"blocks.{b}.{n}" for n in range(len(layers))]
        first = "grow"
        if isinstance(layers[0].narrow, nn.Sequential):
            found |= {f"{n}.narrow.2": [Reader(f"{n}.grow.0", f"{n}.grow.2")] for n in names}
            first = "narrow"
        # Norm and conv of each layer, and after the block.
        reads = [(f"{name}.{first}.0", f"{name}.{first}.2") for name in names]
        is_last, after = b == len(network.blocks) - 1, f"blocks.{b + 1}"
        reads.append(("norm", "classifier") if is_last else (f"{after}.0", f"{after}.2"))
        channels = len(network.get_parameter(f"{reads[0][0]}.weight"))
        for n, layer in enumerate(layers):
            found[f"{names[n]}.grow.2"] = [Reader(*read, channels) for read in reads[n + 1 :]]
            channels += layer.grow[2].out_channels
    return found


build = DenseNet
