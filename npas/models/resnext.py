"""Build the ResNeXts for small images (Xie et al., CVPR 2017, arXiv 1611.05431).

Bottleneck blocks with grouped 3x3 convs, torchvision's own, in three stages of 256, 512 and 1024
channels; inside a block `cardinality` groups of `width` channels, doubled with each stage. The
second and the third stage are entered with stride 2; a 1x1 conv on the shortcut where the shape
changes.

    29 layers, 16x64d: 68,155,210 parameters for 10 classes, 68,247,460 for 100
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.models._initialization import initialize

STEM_CHANNELS = 64
# Beyond these a typing error, not a network: building it would fill the memory first.
MOST_DEPTH, MOST_CHANNELS = 1000, 8192


@dataclass
class Config:
    """The `model.*` keys of a ResNeXt. ValueError for a depth or width that cannot be."""

    family: str = "resnext"
    depth: int = 29
    cardinality: int = 16
    width: int = 64  # channels of one group in the first stage

    def __post_init__(self) -> None:
        if self.depth > MOST_DEPTH:
            raise ValueError(f"model.depth must be at most {MOST_DEPTH}, got {self.depth}")
        if self.depth < 11 or (self.depth - 2) % 9:
            below = max(11, self.depth - (self.depth - 2) % 9)
            nearest = f"{below} or {below + 9}" if self.depth > below else str(below)
            raise ValueError(
                f"model.depth={self.depth}: a ResNeXt has 9n + 2 layers; the nearest is {nearest}"
            )
        for key in ("cardinality", "width"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} must be at least 1, got {getattr(self, key)}")
        if self.cardinality * self.width > MOST_CHANNELS:
            raise ValueError(
                f"model.cardinality={self.cardinality} groups of model.width={self.width} are more"
                f" than {MOST_CHANNELS} channels: lower one of them"
            )


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the ResNeXt of `config` for images of `spec`, which need no fixed height and width."""
    return ResNeXt(config, spec.input_shape[0], spec.num_classes)


class ResNeXt(nn.Module):
    """Classify images, BxCxHxW -> B x num_classes logits."""

    def __init__(self, config: Config, in_channels: int, num_classes: int) -> None:
        super().__init__()
        from torchvision.models.resnet import Bottleneck

        self.stem = nn.Conv2d(in_channels, STEM_CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(STEM_CHANNELS)
        channels, stages = STEM_CHANNELS, []
        for stage, stride in enumerate((1, 2, 2)):
            planes, stack = STEM_CHANNELS * 2**stage, []
            for block in range((config.depth - 2) // 9):
                shortcut = None
                if block == 0:
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, planes * Bottleneck.expansion, 1, stride, bias=False),
                        nn.BatchNorm2d(planes * Bottleneck.expansion),
                    )
                stack.append(
                    Bottleneck(
                        channels,
                        planes,
                        stride if block == 0 else 1,
                        shortcut,
                        groups=config.cardinality,
                        base_width=config.width,
                    )
                )
                channels = planes * Bottleneck.expansion
            stages.append(nn.Sequential(*stack))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.norm(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))
