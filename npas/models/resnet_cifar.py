"""ResNets for small images (He et al., CVPR 2016, arXiv 1512.03385, section 4.2).

Basic blocks (3x3 conv, batch norm, ReLU, 3x3 conv, batch norm, addition, ReLU) in three stages of
16, 32 and 64 channels; the second and third start with stride 2. Shortcuts have no parameters
(option A): where the shape changes they are subsampled, and new channels are zero. 6n + 2 layers:
the stem, 6n convs, the classifier.

    ResNet-56: 853,018 parameters for 10 classes; ResNet-110: 1,727,962
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, Reader, _checks
from npas.models._cnn import Staged, conv3x3, inner_filters


@dataclass
class Config:
    """The `model.*` keys of a small ResNet."""

    family: str = "resnet_cifar"
    depth: int = 56

    def __post_init__(self) -> None:
        _checks.depth(self, "ResNet for small images", step=6, rest=2, most=2000)


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
            zeros = (0, 0, 0, 0, self.new // 2, self.new - self.new // 2)
            x = F.pad(x[..., :: self.stride, :: self.stride], zeros)
        return F.relu(out + x)


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the network."""
    return Staged(Block, spec, 16, (16, 32, 64), (config.depth - 2) // 6)


def filters(network: nn.Module) -> dict[str, list[Reader]]:
    """Return the readers of each block's first conv."""
    return inner_filters(network, Block, "norm1")
