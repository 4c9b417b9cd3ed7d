"""What the convolutional networks for small images have in common."""

from collections.abc import Callable, Iterable

from torch import nn

from npas.models import Reader


def conv3x3(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 conv that keeps the image size at stride 1."""
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)


def stages(
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Iterable[int], count: int
) -> nn.Sequential:
    """Stack `count` blocks a stage, of these widths; all stages but the first halve the image.

    `block` makes one from the channels that it reads, its stage's width and its stride.
    """
    stacked = []
    for stage, width in enumerate(widths):
        first = block(channels, width, 2 if stage else 1)
        stacked.append(nn.Sequential(first, *(block(width, width, 1) for _ in range(count - 1))))
        channels = width
    return nn.Sequential(*stacked)


def inner_filters(network: nn.Module, block: type[nn.Module], norm: str) -> dict[str, list[Reader]]:
    """Return what reads the first conv of each residual block: its norm and the second conv."""
    names = [name for name, module in network.named_modules() if isinstance(module, block)]
    return {f"{name}.conv1": [Reader(f"{name}.{norm}", f"{name}.conv2")] for name in names}


def initialize(model: nn.Module, classifier: nn.Linear) -> None:
    """Draw convs He-normal by fan-out (He et al. 2015) and start the classifier's bias at zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier.bias)
