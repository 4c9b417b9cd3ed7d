"""ResNeXts for small images (Xie et al., CVPR 2017, arXiv 1611.05431).

Torchvision's bottleneck blocks with grouped 3x3 convs, in three stages of 256, 512 and 1024
channels; in a block `cardinality` groups of `width` channels, doubled with each stage. The second
and third stages start with stride 2; shortcuts have a 1x1 conv where the shape changes.

    29 layers, 16x64d: 68,155,210 parameters for 10 classes, 68,247,460 for 100
"""

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from npas.models import InputSpec, _checks
from npas.models._cnn import Staged
from npas.utils.checks import Ranged, within

MOST_CHANNELS = 8192


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a ResNeXt."""

    family: str = "resnext"
    depth: int = 29
    cardinality: Annotated[int, "[1, 8192]"] = 16
    width: int = 64  # channels per group in the first stage

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.depth(self, "ResNeXt", step=9, rest=2)
        within("model.width", self.width, f"[1, {MOST_CHANNELS // self.cardinality}]")


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the network."""
    from torchvision.models.resnet import Bottleneck

    def block(channels: int, out_channels: int, stride: int) -> nn.Module:
        shortcut = None
        if channels != out_channels:
            conv = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))
        planes = out_channels // Bottleneck.expansion
        sizes = {"groups": config.cardinality, "base_width": config.width}
        return Bottleneck(channels, planes, stride, shortcut, **sizes)

    return Staged(block, spec, 64, (256, 512, 1024), (config.depth - 2) // 9)
