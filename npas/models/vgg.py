"""VGG-16 for small images (Simonyan & Zisserman, ICLR 2015, arXiv 1409.1556).

The thirteen 3x3 convs of the original, each with batch norm and ReLU, in five stages; max pooling
by 2 after each of the first four, and global average pooling. Of the three fully connected layers
only the classifier is left, after a layer with batch norm and ReLU of 512 units if `hidden=512`.

    hidden 0: 14,728,266 parameters for 10 classes; hidden 512: 14,991,946
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from npas.models import InputSpec, Reader
from npas.models._cnn import initialize
from npas.utils.checks import Ranged

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of VGG-16."""

    family: str = "vgg"
    hidden: Annotated[int, "[0, 65536]"] = 0  # units of a layer before the classifier; 0: none


class VGG(nn.Module):
    """Classify images of at least 16 pixels a side, BxCxHxW -> B x num_classes logits."""

    def __init__(self, config: Config, spec: InputSpec) -> None:
        super().__init__()
        channels, height, width = spec.input_shape
        if min(height, width) < 2 ** (len(STAGES) - 1):
            raise ValueError(
                f"vgg halves an image four times, and the task's have {height}x{width}"
            )
        modules: list[nn.Module] = []
        for stage, widths in enumerate(STAGES):
            if stage:
                modules.append(nn.MaxPool2d(2))
            for out_channels in widths:
                # With biases, as in the networks of the published figures.
                conv = nn.Conv2d(channels, out_channels, 3, padding=1)
                modules += [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
                channels = out_channels
        self.features = nn.Sequential(*modules)
        self.hidden: nn.Module = nn.Identity()
        if config.hidden:
            linear = nn.Linear(channels, config.hidden)
            self.hidden = nn.Sequential(linear, nn.BatchNorm1d(config.hidden), nn.ReLU())
            channels = config.hidden
        self.classifier = nn.Linear(channels, spec.num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.features(x).mean(dim=(2, 3))))


def filters(network: VGG) -> dict[str, list[Reader]]:
    """Return the readers of each conv: the next conv, or after the last one a linear layer."""
    convs = [i for i, module in enumerate(network.features) if isinstance(module, nn.Conv2d)]
    last = "classifier" if isinstance(network.hidden, nn.Identity) else "hidden.0"
    layers = [*(f"features.{i}" for i in convs[1:]), last]
    pairs = zip(convs, layers, strict=True)
    return {f"features.{i}": [Reader(f"features.{i + 1}", layer)] for i, layer in pairs}


build = VGG
