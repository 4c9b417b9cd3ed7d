"""ResNeXts for small images (Xie et al., CVPR 2017, arXiv 1611.05431).

Torchvision's bottleneck blocks with grouped 3x3 convs, in three stages of 256, 512 and 1024
channels; in a block `cardinality` groups of `width` channels, doubled with each stage. The second
and third stages start with stride 2; shortcuts have a 1x1 conv where the shape changes.

    29 layers, 16x64d: 68,155,210 parameters for 10 classes, 68,247,460 for 100
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, _checks
from npas.models._cnn import conv3x3, initialize, stages
from npas.utils.checks import Ranged, intervals

STEM_CHANNELS = 64
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
        intervals("model.", self, width=f"[1, {MOST_CHANNELS // self.cardinality}]")


class ResNeXt(nn.Module):
    """Classify images of any height and width, BxCxHxW -> B x num_classes logits."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        from torchvision.models.resnet import Bottleneck

        def block(channels: int, out_channels: int, stride: int) -> nn.Module:
            shortcut = None
            if channels != out_channels:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                    nn.BatchNorm2d(out_channels),
                )
            planes = out_channels // Bottleneck.expansion
            sizes = {"groups": config.cardinality, "base_width": config.width}
            return Bottleneck(channels, planes, stride, shortcut, **sizes)

        self.stem = conv3x3(spec.input_shape[0], STEM_CHANNELS)
        self.norm = nn.BatchNorm2d(STEM_CHANNELS)
        self.stages = stages(block, STEM_CHANNELS, (256, 512, 1024), (config.depth - 2) // 9)
        self.classifier = nn.Linear(1024, spec.num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.norm(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


build = ResNeXt
