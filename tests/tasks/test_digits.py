"""The digits: a fixed split, no file needed."""

import hashlib

import pytest
import torch
from helpers import make

from npas.tasks import digits
from npas.tasks.classification import hold_out


def test_the_test_set_is_a_fifth_and_never_another():
    from sklearn.datasets import load_digits

    labels = torch.from_numpy(load_digits().target)
    test = hold_out(labels, digits.TEST_FRACTION, "digits test").nonzero().squeeze(1)
    text = ",".join(str(index) for index in test.tolist())
    # Published figures are of these images: a new sum here makes them another data set's.
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "d5f0eec9660ca0a2520167b7f471e0cddba67404993902b2c35a25eff585d4c6"
    )
    assert len(test) == 359


def test_parts_add_up_are_stratified_and_of_any_seed():
    task, other = (make("digits", seed=seed, data={"val_fraction": 0.1}) for seed in (0, 1))
    sizes = {name: len(part.labels) for name, part in task.parts.items()}
    assert sizes == {"train": 1295, "val": 143, "test": 359}
    for name, part in task.parts.items():
        shares = part.labels.bincount(minlength=10) / len(part.labels)
        assert (shares - 0.1).abs().max() < 0.01
        assert torch.equal(part.images, other.parts[name].images)


def test_without_a_validation_part_all_the_rest_is_trained_on():
    task = make("digits")
    assert not task.has_validation and len(task.parts["train"].labels) == 1438
    batch = next(task.train_batches(0, 1438))
    assert batch.inputs.shape == (1438, 1, 8, 8) and batch.inputs.dtype == torch.float32
    assert abs(batch.inputs.mean()) < 0.1 and 0.9 < batch.inputs.std() < 1.1


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_a_fraction_that_leaves_a_part_empty_is_refused(fraction):
    message = rf"^data\.val_fraction={fraction} holds out .* choose one"
    with pytest.raises(ValueError, match=message):
        make("digits", data={"val_fraction": fraction})
