"""Classify scikit-learn's 1,797 handwritten digits: 8x8 real images that need no download.

The test set is a fixed fifth of every class. The rest, 1,438 images, is the training set, from
which `data.val_fraction` is held out for validation. Augmentation shifts images by up to one pixel;
they are not flipped, since most mirrored digits are not digits.

Source: UCI Optical Recognition of Handwritten Digits, as bundled by `sklearn.datasets.load_digits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from npas.models import InputSpec
from npas.tasks.cifar import synthetic
from npas.tasks.classification import Part, Recipe, Resident, hold_out

if TYPE_CHECKING:
    from npas.config import DataConfig

TEST_FRACTION = 0.2
# Pixels are 0 to 16; mean and standard deviation are of the training images.
RECIPE = Recipe(mean=(4.89,), std=(6.03,), padding=1, flip=False, cutout=0)


@dataclass
class Config:
    """The `task.*` keys of the digits: none."""

    family: str = "digits"


class Task(Resident):
    """Classify 8x8 grey images into ten digits."""

    def __init__(
        self, config: Config, data: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        spec = InputSpec((1, 8, 8), 10)
        super().__init__("digits", spec, RECIPE, data, seed=seed, device=device)

    def read(self) -> dict[str, Part]:
        """Load the images from scikit-learn, or generate synthetic ones, and split them."""
        if self.source == "synthetic":
            return self._generate()
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(-1)
        labels = torch.from_numpy(bunch.target.astype(np.int64))
        train, test = Part(images, labels).split(hold_out(labels, TEST_FRACTION, "digits test"))
        if not self.has_validation:
            return {"train": train, "test": test}
        held_N = hold_out(train.labels, self.val_fraction, "digits validation")
        train, val = train.split(held_N)
        return {"train": train, "test": test, "val": val}

    def _generate(self) -> dict[str, Part]:
        """Generate images with pixels 0 to 16 for every part."""
        counts = {"train": self.synthetic.train, "test": self.synthetic.test}
        if self.has_validation:
            counts["val"] = self.synthetic.test
        parts = {}
        for purpose, (name, count) in enumerate(counts.items()):
            images, labels = synthetic.generate_images(count, 10, 8, 8, 1, 17, purpose)
            parts[name] = Part(torch.from_numpy(images), torch.from_numpy(labels))
        return parts
