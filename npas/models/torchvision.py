"""Build any classification network of torchvision by its name there, from fresh weights.

Two of the deeper networks of the papers are built from its classes under names that it lacks.

    resnet50: 25,557,032 parameters for 1,000 classes; wide_resnet50_2: 68,883,240
    resnet200: 64,673,832; densenet264: 33,337,704
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from npas.models import InputSpec, near

RGB = 3  # channels of what all of these networks read
# These two answer with a tuple of logits in training unless their auxiliary heads are off, and
# warn that their default initialization will change unless it is asked for.
AUXILIARY_HEADS = ("googlenet", "inception_v3")
# Blocks or layers a stage (He et al. 2016, arXiv 1603.05027; Huang et al. 2017, arXiv 1608.06993).
DEEPER = {"resnet200": (3, 24, 36, 3), "densenet264": (6, 12, 64, 48)}


@dataclass
class Config:
    """Hold the `model.*` keys of a torchvision network. ValueError for a name it does not have."""

    family: str = "torchvision"
    name: str = "resnet50"

    def __post_init__(self) -> None:
        from torchvision import models

        names = [*models.list_models(module=models), *DEEPER]
        if self.name not in names:
            raise ValueError(
                f"model.name={self.name!r} is no classification network of torchvision; "
                + near(self.name, names)
            )


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the named network with `spec.num_classes` outputs. ValueError unless inputs are RGB."""
    if len(spec.input_shape) != 3 or spec.input_shape[0] != RGB:
        raise ValueError(
            f"model.name={config.name} reads {RGB}-channel images, and an input of this task is "
            f"{'x'.join(map(str, spec.input_shape))}: choose another task, or a WRN as "
            "model=wrn_16_2"
        )
    from torchvision import models

    extra: dict[str, Any] = {"num_classes": spec.num_classes}
    if config.name in DEEPER:
        return deeper(config.name, **extra)
    if config.name in AUXILIARY_HEADS:
        extra |= {"aux_logits": False, "init_weights": True}
    return models.get_model(config.name, weights=None, **extra)


def deeper(name: str, **extra: Any) -> nn.Module:
    """Build a network of `DEEPER`; post-activation blocks, as in torchvision's other ResNets."""
    from torchvision.models import DenseNet, ResNet
    from torchvision.models.resnet import Bottleneck

    if name.startswith("densenet"):
        return DenseNet(block_config=DEEPER[name], **extra)
    return ResNet(Bottleneck, list(DEEPER[name]), **extra)
