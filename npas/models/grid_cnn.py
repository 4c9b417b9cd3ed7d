"""Build a network of equal 3x3 convs that keeps its input's grid: one answer a cell.

A conv lifts the input to `width` channels; `depth` residual blocks (batch norm, ReLU, 3x3 conv)
follow, all of one shape and in one row, `blocks`; batch norm, ReLU and a 1x1 conv answer. Nothing
is pooled, so a block passes on what it knows to the neighbouring cells alone: paths longer than
`depth` moves are beyond what the network can see from one end to the other. As the blocks have one
shape, layers that share can grow alike, and runs of them fold into a loop.

    depth 16, width 16: 37,713 parameters for 2 input channels and one answer
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec

OUTPUTS = ("cell",)
# Beyond these a typing error, not a network: building it would fill the memory first.
MOST_DEPTH, MOST_WIDTH = 1000, 4096


@dataclass
class Config:
    """The `model.*` keys of a grid CNN. ValueError for a depth or width out of range."""

    family: str = "grid_cnn"
    depth: int = 24
    width: int = 32

    def __post_init__(self) -> None:
        for key, most in (("depth", MOST_DEPTH), ("width", MOST_WIDTH)):
            if not 1 <= getattr(self, key) <= most:
                raise ValueError(f"model.{key} must be from 1 to {most}, got {getattr(self, key)}")


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the network of `config` for grids of `spec`, which need no fixed height and width."""
    return GridCNN(config.depth, config.width, spec.input_shape[0], spec.num_classes)


class Block(nn.Module):
    """Add a 3x3 conv, after batch norm and ReLU, to the input: BxCxHxW -> BxCxHxW."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class GridCNN(nn.Module):
    """Answer for every cell of a grid, BxCxHxW -> BxDxHxW logits."""

    def __init__(self, depth: int, width: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))))
