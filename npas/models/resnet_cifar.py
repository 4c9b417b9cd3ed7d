"""Build the ResNets for small images (He et al., CVPR 2016, arXiv 1512.03385, section 4.2).

Basic blocks (3x3 conv, batch norm, ReLU, 3x3 conv, batch norm, then the addition and ReLU) in three
stages of 16, 32 and 64 channels, the second and third entered with stride 2. Shortcuts have no
parameters (option A): where the shape changes every second pixel is taken, and zeros stand in for
the channels that are new. 6n + 2 layers: the stem, 6n convs, the classifier.

    ResNet-56: 853,018 parameters for 10 classes; ResNet-110: 1,727,962
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.models._initialization import initialize
from npas.models.wrn import conv3x3

STEM_CHANNELS = 16
MOST_DEPTH = 2000  # beyond it a typing error; the authors' deepest has 1202


@dataclass
class Config:
    """The `model.*` keys of a small ResNet. ValueError for a depth that cannot be built."""

    family: str = "resnet_cifar"
    depth: int = 56

    def __post_init__(self) -> None:
        if self.depth > MOST_DEPTH:
            raise ValueError(f"model.depth must be at most {MOST_DEPTH}, got {self.depth}")
        if self.depth < 8 or (self.depth - 2) % 6:
            below = max(8, self.depth - (self.depth - 2) % 6)
            nearest = f"{below} or {below + 6}" if self.depth > below else str(below)
            raise ValueError(
                f"model.depth={self.depth}: a ResNet for small images has 6n + 2 layers; the"
                f" nearest is {nearest}"
            )


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the ResNet of `config` for images of `spec`, which need no fixed height and width."""
    return ResNet(config.depth, spec.input_shape[0], spec.num_classes)


class Block(nn.Module):
    """Add two 3x3 convs with batch norm to the input: BxCxHxW -> BxDxH'xW', D = C or 2C."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride, self.new = stride, out_channels - channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride != 1 or self.new:
            # Half of the zeros before the channels that are there, half behind them.
            before = self.new // 2
            x = F.pad(
                x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before)
            )
        return F.relu(out + x)


class ResNet(nn.Module):
    """Classify images, BxCxHxW -> B x num_classes logits."""

    def __init__(self, depth: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(in_channels, STEM_CHANNELS)
        self.norm = nn.BatchNorm2d(STEM_CHANNELS)
        channels, stages = STEM_CHANNELS, []
        for stage, stride in enumerate((1, 2, 2)):
            out_channels, stack = STEM_CHANNELS * 2**stage, []
            for block in range((depth - 2) // 6):
                stack.append(Block(channels, out_channels, stride if block == 0 else 1))
                channels = out_channels
            stages.append(nn.Sequential(*stack))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.norm(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))
