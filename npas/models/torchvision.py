"""Build any classification network of torchvision by its name there, from fresh weights.

resnet50: 25,557,032 parameters for 1,000 classes; wide_resnet50_2: 68,883,240
"""

from dataclasses import dataclass

from torch import nn

from npas.models import InputSpec, near

RGB = 3  # channels of what all of these networks read
# These two answer with a tuple of logits in training unless their auxiliary heads are off, and
# warn that their default initialization will change unless it is asked for.
AUXILIARY_HEADS = ("googlenet", "inception_v3")


@dataclass
class Config:
    """Hold the `model.*` keys of a torchvision network. ValueError for a name it does not have."""

    family: str = "torchvision"
    name: str = "resnet50"

    def __post_init__(self) -> None:
        from torchvision import models

        names = models.list_models(module=models)
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

    extra = {"aux_logits": False, "init_weights": True} if config.name in AUXILIARY_HEADS else {}
    return models.get_model(config.name, weights=None, num_classes=spec.num_classes, **extra)
