"""Start networks as their authors do: those for small images, and those for phrases."""

from torch import nn


def initialize(model: nn.Module, classifier: nn.Linear) -> None:
    """Draw convs He-normal by fan-out (He et al. 2015) and start the classifier's bias at zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier.bias)


def glorot(model: nn.Module) -> None:
    """Draw linear layers as TensorFlow does (Glorot and Bengio 2010, uniform); biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
