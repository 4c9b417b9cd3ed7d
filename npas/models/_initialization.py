"""Start the convolutional networks for small images as their papers do."""

from torch import nn


def initialize(model: nn.Module, classifier: nn.Linear) -> None:
    """Draw convs He-normal by fan-out (He et al. 2015) and start the classifier's bias at zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier.bias)
