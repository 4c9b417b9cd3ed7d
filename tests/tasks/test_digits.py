"""The digits are real, split once and for all, and need no file."""

import hashlib

import pytest
import torch

from npas import tasks
from npas.config import DataConfig
from npas.tasks import digits
from npas.tasks.classification import hold_out


def make(split: float | None = None, seed: int = 0) -> digits.Task:
    data = DataConfig(root="nowhere", val_fraction=split, download=False)
    task = digits.Task(digits.Config(), data, seed=seed, device=torch.device("cpu"))
    task.setup()
    return task


def test_the_test_set_is_a_fifth_and_never_another() -> None:
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


def test_parts_add_up_and_are_stratified() -> None:
    task = make(0.1)
    sizes = {name: len(part.labels) for name, part in task.parts.items()}
    assert sizes == {"train": 1295, "val": 143, "test": 359}
    for part in task.parts.values():
        shares = part.labels.bincount(minlength=10) / len(part.labels)
        assert (shares - 0.1).abs().max() < 0.01


@pytest.mark.parametrize("split", [None, 0.0])
def test_without_a_validation_part_all_the_rest_is_trained_on(split: str | None) -> None:
    task = make(split)
    assert not task.has_validation
    assert len(task.parts["train"].labels) == 1438


def test_no_seed_moves_the_split() -> None:
    one, other = make(0.1, seed=0), make(0.1, seed=1)
    assert all(torch.equal(one.parts[n].images, other.parts[n].images) for n in one.parts)


def test_the_spec_is_known_before_any_data_are_read() -> None:
    data = DataConfig(root="nowhere", val_fraction=None, download=False)
    task = digits.Task(digits.Config(), data, seed=0, device=torch.device("cpu"))
    assert task.spec.input_shape == (1, 8, 8)
    assert task.spec.num_classes == 10
    assert (task.name, task.source) == ("digits", "real")


def test_batches_are_normalised_images_of_the_right_shape() -> None:
    batch = next(make().train_batches(0, 1438))
    assert batch.inputs.shape == (1438, 1, 8, 8)
    assert batch.inputs.dtype == torch.float32
    assert abs(batch.inputs.mean()) < 0.1
    assert 0.9 < batch.inputs.std() < 1.1


def test_evaluation_counts_every_image_once_and_leaves_the_mode_alone() -> None:
    task = make()

    class AlwaysThree(torch.nn.Module):
        seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training and not torch.is_grad_enabled()
            self.seen += len(x)
            return torch.nn.functional.one_hot(torch.full((len(x),), 3), 10) * 20.0

    model = AlwaysThree()
    metrics = task.evaluate(model, "test")
    threes = (task.parts["test"].labels == 3).sum().item()
    assert metrics["accuracy"] == 100 * threes / 359
    assert metrics["loss"] == pytest.approx(20 * (1 - threes / 359), rel=1e-3)
    assert model.seen == 359 and model.training


def test_a_batch_beyond_the_set_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match="1438 training images"):
        make().steps_per_epoch(2000)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(ValueError, match="nearest that does is 63"):
        next(make().train_batches(0, 64, world=3))


def test_a_misspelled_task_is_refused_with_near_names() -> None:
    with pytest.raises(ValueError, match="did you mean digits"):
        tasks.family("digit")
    with pytest.raises(ValueError, match="choose from cifar, digits, grounding, imagenet"):
        tasks.family("_augment")


def test_the_data_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make()
    parts = task.parts
    monkeypatch.setattr(task, "read", lambda: 1 / 0)
    task.setup()
    assert task.parts is parts


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_a_fraction_that_leaves_a_part_empty_is_refused(fraction: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^data\.val_fraction={fraction} holds out .* choose one"
    ):
        make(fraction)
