"""Any classification network of torchvision, by name, untrained.

Also resnet200 and densenet264, two deeper networks of the papers, built from its classes.

    resnet50: 25,557,032 parameters for 1,000 classes; wide_resnet50_2: 68,883,240
    the same with `stem: three_convs`: 25,576,264; 68,902,472
    resnet200: 64,673,832; densenet264: 33,337,704; mobilenet_v2: 3,504,872
    efficientnet_b0 to b3: 5,288,548; 7,794,184; 9,109,994; 12,233,232
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from npas.models import InputSpec, _checks
from npas.models._cnn import conv3x3
from npas.utils.checks import near

# These return a tuple of logits in training unless their auxiliary heads are off, and warn unless
# the default initialization is requested explicitly.
AUXILIARY_HEADS = ("googlenet", "inception_v3")
# Layers per stage (He et al. 2016, arXiv 1603.05027; Huang et al. 2017, arXiv 1608.06993).
DEEPER = {"resnet200": (3, 24, 36, 3), "densenet264": (6, 12, 64, 48)}
RESNETS = ("resnet", "wide_resnet", "resnext")  # prefixes of their names


@dataclass
class Config:
    """The `model.*` keys of a torchvision network.

    With `stem: three_convs` a ResNet's stem is three 3x3 convs, as in the reference code, not one
    7x7. With `identities` blocks are initialized as identities (Goyal et al. 2017, section 5.1).
    """

    family: str = "torchvision"
    name: str = "resnet50"
    stem: Literal["conv", "three_convs"] = "conv"
    identities: bool = False

    def __post_init__(self) -> None:
        from torchvision import models

        names = [*models.list_models(module=models), *DEEPER]
        if self.name not in names:
            raise ValueError(
                f"model.name={self.name!r} is not a classification network of torchvision;"
                f" {near(self.name, names)}"
            )
        if (self.stem != "conv" or self.identities) and not self.name.startswith(RESNETS):
            key = f"stem={self.stem}" if self.stem != "conv" else "identities=true"
            raise ValueError(f"model.{key} is for ResNets, and model.name={self.name} is not one")


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the named network; raises ValueError unless inputs are RGB.

    ResNet-200's 66 blocks are initialized as identities: else gradients grow a thousand-fold.
    """
    from torchvision import models
    from torchvision.models.resnet import Bottleneck

    _checks.images(config, spec, channels=3)
    extra: dict[str, Any] = {"num_classes": spec.num_classes}
    if config.identities or config.name == "resnet200":
        extra["zero_init_residual"] = True
    if config.name in AUXILIARY_HEADS:
        extra |= {"aux_logits": False, "init_weights": True}
    if config.name == "resnet200":
        model: nn.Module = models.ResNet(Bottleneck, list(DEEPER[config.name]), **extra)
    elif config.name == "densenet264":
        model = models.DenseNet(block_config=DEEPER[config.name], **extra)
    else:
        model = models.get_model(config.name, weights=None, **extra)
    if config.stem == "three_convs":
        model.conv1 = three_convs()
    _checks.takes(model, config.name, spec)
    return model


def three_convs() -> nn.Sequential:
    """Build a stem of three 3x3 convs that halves each side; the ResNet's own norm follows it."""
    convs = [conv3x3(3, 32, 2), conv3x3(32, 32), conv3x3(32, 64)]
    for conv in convs:  # as torchvision initializes the convs of a ResNet
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    between = [[nn.BatchNorm2d(32), nn.ReLU(inplace=True)] for _ in range(2)]
    return nn.Sequential(convs[0], *between[0], convs[1], *between[1], convs[2])
