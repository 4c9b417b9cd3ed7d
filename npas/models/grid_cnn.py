"""A network of 3x3 convs of one shape, without pooling, with an output for every cell.

A conv maps the input to `width` channels; then `depth` residual blocks (batch norm, ReLU, 3x3 conv)
of the same shape; then batch norm, ReLU and a 1x1 conv. A block passes information to neighbouring
cells only, so the network cannot see a path of more than `depth` moves from end to end. As all
blocks have one shape, shared layers can become similar, and can then be folded into a loop.

    depth 16, width 16: 37,713 parameters for 2 input channels and 1 output
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec
from npas.models._cnn import conv3x3
from npas.utils.checks import Ranged

OUTPUTS = ("cell",)


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a grid CNN."""

    family: str = "grid_cnn"
    depth: Annotated[int, "[1, 1000]"] = 24
    width: Annotated[int, "[1, 4096]"] = 32


class Block(nn.Module):
    """Add a 3x3 conv, after batch norm and ReLU, to the input: BxCxHxW -> BxCxHxW."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class GridCNN(nn.Module):
    """Classify every cell of a grid of any height and width, BxCxHxW -> BxDxHxW logits."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        self.stem = conv3x3(spec.input_shape[0], config.width)
        self.blocks = nn.Sequential(*(Block(config.width) for _ in range(config.depth)))
        self.norm = nn.BatchNorm2d(config.width)
        self.head = nn.Conv2d(config.width, spec.num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))))


build = GridCNN
