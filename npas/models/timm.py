"""Any classification network of timm (Wightman, "PyTorch Image Models"), by name, untrained.

Networks of a fixed image size are built for the task's. An extra: pip install npas[timm].

    mobilenetv3_small_100: 2,542,856 parameters for 1,000 classes; vit_small_patch16_224: 22,050,664
"""

import difflib
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from npas.models import InputSpec, _checks
from npas.utils.checks import Ranged
from npas.utils.files import reason


@dataclass
class Config(Ranged, section="model."):
    """The `model.*` keys of a timm network."""

    family: str = "timm"
    name: str = "mobilenetv3_small_100"
    dropout: Annotated[float, "[0, 1)"] = 0.0  # before the classifier; timm calls it drop_rate

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            import timm
        except ModuleNotFoundError:
            raise ValueError("model.family=timm needs timm: pip install timm") from None
        if not timm.is_model(self.name):
            close = difflib.get_close_matches(self.name, timm.list_models(), n=3)
            # Not all names: there are more than a thousand.
            hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
            raise ValueError(f"model.name={self.name!r} is not a network of timm; {hint}")


def build(config: Config, spec: InputSpec) -> nn.Module:
    """Build the named network; raises ValueError unless inputs are images that it can take."""
    import timm

    _checks.images(config, spec)
    channels, *size = spec.input_shape
    extra: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": channels}
    if config.dropout:
        extra["drop_rate"] = config.dropout
    if getattr(timm.get_pretrained_cfg(config.name), "fixed_input_size", False):
        extra["img_size"] = tuple(size)
    try:
        model: nn.Module = timm.create_model(config.name, pretrained=False, **extra)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        shape = "x".join(map(str, spec.input_shape))
        raise ValueError(f"timm cannot build {config.name} for {shape}: {reason(error)}") from None
    _checks.takes(model, config.name, spec)
    return model
