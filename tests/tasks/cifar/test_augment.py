"""Augmentation is that of the papers."""

from collections import Counter

import pytest
import torch

from npas.tasks import classification
from npas.tasks.cifar import RECIPES


def pixels(batch):
    """Undo the normalisation: BxCxHxW floats back to bytes."""
    recipe = RECIPES[10]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    return (batch * std + mean).round()


@pytest.fixture(scope="module")
def epochs(make_cifar):
    """Twenty epochs of the tiny set: 1,800 images whose pixels tell where they come from."""
    task = make_cifar()
    return torch.cat([b.inputs for epoch in range(20) for b in task.train_batches(epoch, 90)])


def test_crops_cover_every_offset_evenly_and_flips_take_half(epochs):
    inside = pixels(epochs)
    tops, lefts, flips = Counter(), Counter(), Counter()
    for image in inside:
        # Cutout hides pixels as the mean, 125 and 123: true rows and columns are 1 to 32.
        rows, columns = image[0], image[1]
        seen = (rows >= 1) & (rows <= 32) & (columns >= 1) & (columns <= 32)
        y, x = (int(v) for v in seen.nonzero()[0])
        row, column = int(rows[y, x]) - 1, int(columns[y, x]) - 1
        line = columns[y][seen[y]]
        flipped = bool(line[0] > line[-1])
        tops[row - y + 4] += 1
        lefts[(column - (31 - x) if flipped else column - x) + 4] += 1
        flips[flipped] += 1
    assert set(tops) == set(lefts) == set(range(9))
    assert max((*tops.values(), *lefts.values())) < 280 and min(tops.values()) > 130  # about 200
    assert 800 < flips[True] < 1000


def test_cutout_takes_a_square_of_16_or_what_of_it_is_inside(epochs):
    hidden = (epochs == 0).all(1)
    areas = Counter(int(area) for area in hidden.sum((1, 2)))
    assert max(areas) == 16 * 16
    assert min(areas) >= 8 * 8
    # The centre is any pixel: 17 of 32 rows leave the whole height inside.
    assert areas[256] / len(epochs) == pytest.approx((17 / 32) ** 2, abs=0.05)
    for square in hidden[:100]:
        rows, columns = square.any(1).sum(), square.any(0).sum()
        assert rows * columns == square.sum()


def test_cutout_is_on_unless_it_is_switched_off(make_cifar):
    plain, cut = (next(make_cifar(cutout=on).train_batches(0, 90)).inputs for on in (False, True))
    hidden = (cut == 0).all(1, keepdim=True)
    assert not (plain == 0).all(1).any() and hidden.any()
    assert torch.equal(plain.masked_fill(hidden, 0.0), cut)  # the same crops and flips


def test_batches_on_a_cpu_lie_in_the_plain_order():
    images_BHWC = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    images_BCHW = classification.to_nchw(images_BHWC)
    assert images_BCHW.is_contiguous()
    assert torch.equal(images_BCHW[1, 2], images_BHWC[1, :, :, 2])
