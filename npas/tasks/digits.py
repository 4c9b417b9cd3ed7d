"""Classify scikit-learn's 1,797 handwritten digits: 8x8 real images that need no download.

A fifth of every class is the test set, the same in every run; the figures published here are of it.
The rest, 1,438 images, is trained on, less `data.val_fraction` of it that is held out to choose a
checkpoint by. Images move by one pixel; a flip would make most digits into none.

Source: UCI Optical Recognition of Handwritten Digits, as bundled by `sklearn.datasets.load_digits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from npas.models import InputSpec
from npas.tasks.cifar import synthetic
from npas.tasks.classification import Classification, Part, Recipe, hold_out

if TYPE_CHECKING:
    from npas.config import DataConfig

TEST_FRACTION = 0.2
# Pixels count 0 to 16; mean and deviation are those of the training images.
RECIPE = Recipe(mean=(4.89,), std=(6.03,), padding=1, flip=False, cutout=0)


@dataclass
class Config:
    """The `task.*` keys of the digits: there is nothing to choose."""

    family: str = "digits"


class Task(Classification):
    """Classify 8x8 grey images into ten digits."""

    def __init__(
        self, config: Config, data: DataConfig, *, seed: int, device: torch.device
    ) -> None:
        super().__init__(
            "digits",
            InputSpec((1, 8, 8), 10),
            RECIPE,
            val_fraction=data.val_fraction or 0.0,
            seed=seed,
            device=device,
            source=data.source,
        )
        self.synthetic = data.synthetic

    def read(self) -> dict[str, Part]:
        """Read the images from the installed scikit-learn and split them."""
        if self.source == "synthetic":
            return self._make_up()
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(-1)
        labels = torch.from_numpy(bunch.target.astype(np.int64))
        test = hold_out(labels, TEST_FRACTION, "digits test")
        parts = {"test": Part(images[test], labels[test])}
        images, labels = images[~test], labels[~test]
        if self.has_validation:
            held = hold_out(labels, self.val_fraction, "digits validation")
            parts["val"] = Part(images[held], labels[held])
            images, labels = images[~held], labels[~held]
        return {"train": Part(images, labels), **parts}

    def _make_up(self) -> dict[str, Part]:
        """Generate images of 17 shades for every part; there is no file format."""
        counts = {"train": self.synthetic.train, "test": self.synthetic.test}
        if self.has_validation:
            counts["val"] = self.synthetic.test
        parts = {}
        for purpose, (name, count) in enumerate(counts.items()):
            images, labels = synthetic.make_up(count, 10, 8, 8, 1, 17, purpose)
            parts[name] = Part(torch.from_numpy(images), torch.from_numpy(labels))
        return parts
