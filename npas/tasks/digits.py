"""Classify scikit-learn's 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits).

A fixed fifth of every class is the test set. Augmentation shifts images by up to one pixel; they
are not flipped, since most mirrored digits are not digits.
"""

from dataclasses import dataclass

import numpy as np
import torch

from npas.models import InputSpec
from npas.tasks.classification import Part, Recipe, Resident, hold_out

TEST_FRACTION = 0.2
# Pixels are 0 to 16; mean and standard deviation are of the training images.
RECIPE = Recipe(mean=(4.89,), std=(6.03,), padding=1, flip=False, cutout=0)


@dataclass
class Config:
    """The `task.*` keys of the digits: none."""

    family: str = "digits"


class Task(Resident):
    """Classify 8x8 grey images into ten digits."""

    name, spec, recipe, levels = "digits", InputSpec((1, 8, 8), 10), RECIPE, 17

    def load(self) -> tuple[Part, Part]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(-1)
        labels = torch.from_numpy(bunch.target.astype(np.int64))
        whole, test_N = Part(images, labels), hold_out(labels, TEST_FRACTION, "digits test")
        return whole.take(~test_N), whole.take(test_N)
