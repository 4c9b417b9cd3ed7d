"""Wide ResNets, WRN-d-w (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146).

Pre-activation basic blocks (batch norm, ReLU, 3x3 conv, twice) in three stages of 16w, 32w and 64w
channels; the second and third start with stride 2, and shortcuts have a 1x1 conv where the shape
changes. Global average pooling allows images of any size.

    WRN-28-10: 36,479,194 parameters for 10 classes, 36,536,884 for 100
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, Reader, _checks
from npas.models._cnn import conv3x3, initialize, inner_filters, stages
from npas.utils.checks import Ranged

STEM_CHANNELS = 16


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a WRN."""

    family: str = "wrn"
    depth: int = 28
    # Fractions make narrower dense ones; below 0.04 a stage is empty.
    width: Annotated[float, "[0.04, 100]"] = 10
    dropout: Annotated[float, "[0, 1)"] = 0.0  # between the two convs of a block

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.depth(self, "WRN", step=6, rest=4)


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
        # As published, a conv shortcut reads the activated input, an identity the raw one.
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.norm2(self.conv1(out)))
        out = self.conv2(F.dropout(out, self.dropout, self.training))
        return out + shortcut


class WideResNet(nn.Module):
    """Classify images of any height and width, BxCxHxW -> B x num_classes logits."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        self.stem = conv3x3(spec.input_shape[0], STEM_CHANNELS)
        widths = [round(STEM_CHANNELS * 2**stage * config.width) for stage in range(3)]
        block = partial(Block, dropout=config.dropout)
        self.stages = stages(block, STEM_CHANNELS, widths, (config.depth - 4) // 6)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], spec.num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stages(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def filters(network: nn.Module) -> dict[str, list[Reader]]:
    """Return the readers of each block's first conv."""
    return inner_filters(network, Block, "norm2")


build = WideResNet
