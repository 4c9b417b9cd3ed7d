"""Build Wide ResNets, WRN-d-w (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146).

Pre-activation basic blocks (batch norm, ReLU, 3x3 conv, twice) in three stages of 16w, 32w and 64w
channels, the second and third entered with stride 2; a 1x1 conv on the shortcut where the shape
changes. Global average pooling makes the network take 32x32 (CIFAR) and 8x8 (digits) images alike.

    WRN-28-10: 36,479,194 parameters for 10 classes, 36,536,884 for 100
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.models._initialization import initialize

STEM_CHANNELS = 16
# Beyond these a typing error, not a network: building it would fill the memory first.
MOST_DEPTH, MOST_WIDTH = 1000, 100


@dataclass
class Config:
    """The `model.*` keys of a WRN. ValueError for a depth or width that cannot be built."""

    family: str = "wrn"
    depth: int = 28
    width: float = 10  # fractions make narrower dense baselines
    dropout: float = 0.0  # between the two convs of a block

    def __post_init__(self) -> None:
        if self.depth > MOST_DEPTH:
            raise ValueError(f"model.depth must be at most {MOST_DEPTH}, got {self.depth}")
        if self.width > MOST_WIDTH:
            raise ValueError(f"model.width must be at most {MOST_WIDTH}, got {self.width}")
        if self.depth < 10 or (self.depth - 4) % 6:
            below = max(10, self.depth - (self.depth - 4) % 6)
            nearest = "10" if self.depth < 10 else f"{below} or {below + 6}"
            raise ValueError(
                f"model.depth={self.depth}: a WRN has 6n + 4 layers; the nearest is {nearest}"
            )
        if not self.width > 0 or round(STEM_CHANNELS * self.width) < 1:
            raise ValueError(
                f"model.width={self.width}: the first stage has round(16 * width) channels; "
                "give at least 0.04"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: give a rate from 0 up to, not with, 1")


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the WRN of `config` for images of `spec`, which need no fixed height and width."""
    return WideResNet(
        config.depth, config.width, config.dropout, spec.input_shape[0], spec.num_classes
    )


class Block(nn.Module):
    """Add two 3x3 convs, each after batch norm and ReLU, to the input: BxCxHxW -> BxDxH'xW'."""

    def __init__(self, channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = conv3x3(channels, out_channels, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.dropout = dropout
        self.shortcut: nn.Module | None = None
        if channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        # A conv shortcut reads the activated input, an identity the raw one, as published.
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.norm2(self.conv1(out)))
        out = self.conv2(F.dropout(out, self.dropout, self.training))
        return out + shortcut


class WideResNet(nn.Module):
    """Classify images, BxCxHxW -> B x num_classes logits."""

    def __init__(
        self, depth: int, width: float, dropout: float, in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.stem = conv3x3(in_channels, STEM_CHANNELS)
        channels, stages = STEM_CHANNELS, []
        for stage, stride in enumerate((1, 2, 2)):
            out_channels = round(STEM_CHANNELS * 2**stage * width)
            stack = []
            for block in range(blocks):
                stack.append(Block(channels, out_channels, stride if block == 0 else 1, dropout))
                channels = out_channels
            stages.append(nn.Sequential(*stack))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stages(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def conv3x3(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 conv that keeps the image size at stride 1."""
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
