"""Building blocks of the convolutional networks for small images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from npas.models import InputSpec, Reader

Block = Callable[[int, int, int], nn.Module]


def conv3x3(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 conv that keeps the image size at stride 1."""
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)


def stages(block: Block, channels: int, widths: Sequence[int], count: int) -> nn.Sequential:
    """Stack stages of `count` blocks with these widths; all but the first halve the image."""
    stacked = []
    for stage, width in enumerate(widths):
        first = block(channels, width, 2 if stage else 1)
        stacked.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(count - 1))))
        channels = width
    return nn.Sequential(*stacked)


class Staged(nn.Module):
    """Classify images of any height and width by post-activation blocks: BxCxHxW -> BxK."""

    def __init__(
        self, block: Block, spec: InputSpec, stem: int, widths: Sequence[int], count: int
    ) -> None:
        super().__init__()
        self.stem = conv3x3(spec.input_shape[0], stem)
        self.norm = nn.BatchNorm2d(stem)
        self.stages = stages(block, stem, widths, count)
        self.classifier = nn.Linear(widths[-1], spec.num_classes)
        initialize(self, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.norm(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def inner_filters(network: nn.Module, block: type[nn.Module], norm: str) -> dict[str, list[Reader]]:
    """Return the readers of each residual block's first conv: its norm and the second conv."""
    names = [name for name, module in network.named_modules() if isinstance(module, block)]
    return {f"{name}.conv1": [Reader(f"{name}.{norm}", f"{name}.conv2")] for name in names}


def initialize(model: nn.Module, classifier: nn.Linear) -> None:
    """Initialize convs He-normal by fan-out (He et al. 2015), and the classifier's bias with 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier.bias)
