"""Describe ImageNet-1k, so that `npas-plan` can count its networks; training is not available."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npas.models import InputSpec
from npas.tasks._classification import Classification, Part, Recipe

if TYPE_CHECKING:
    from npas.config import DataConfig

# The channels' means and deviations that torchvision's ImageNet networks are trained with.
RECIPE = Recipe((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), padding=0, flip=True, cutout=0)


@dataclass
class Config:
    """Hold the `task.*` keys of ImageNet: there is nothing to choose yet."""

    family: str = "imagenet"


class Task(Classification):
    """Classify 224x224 colour images into 1,000 classes: the shapes only."""

    def __init__(
        self, config: Config, data: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        super().__init__(
            "imagenet",
            InputSpec((3, 224, 224), 1000),
            RECIPE,
            has_validation=False,
            seed=seed,
            device=device,
        )

    def read(self) -> dict[str, Part]:
        """Refuse: ValueError."""
        raise ValueError(
            "training on imagenet is not available yet: npas-plan counts its networks; "
            "choose task=cifar10, cifar100 or digits to train"
        )
