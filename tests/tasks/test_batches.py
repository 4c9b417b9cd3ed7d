"""A batch, had whole or in parts, alone or among others, is the same samples each time."""

from typing import Any

import pytest
import torch

from npas.config import DataConfig
from npas.tasks import base, digits
from npas.tasks.base import Batch
from npas.tasks.shortest_paths import task as shortest_paths

CPU = torch.device("cpu")
DATA = DataConfig(root="nowhere", val_fraction=None, download=False)


@pytest.fixture(scope="module", params=["digits", "shortest_paths"])
def task(request: pytest.FixtureRequest) -> Any:
    if request.param == "digits":
        made: Any = digits.Task(digits.Config(), DATA, seed=0, device=CPU)
    else:
        config = shortest_paths.Config(size=7, phases=[2, 4], epoch_samples=130)
        made = shortest_paths.Task(config, DATA, seed=0, device=CPU)
    made.setup()
    return made


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.inputs, other.inputs)
        and torch.equal(one.targets, other.targets)
        and one.size == other.size
    )


@pytest.mark.parametrize(
    "steps",
    [range(0), range(3, 10), range(1, 10, 3), range(9, 10), range(0, 10, 7), range(9, -1, -2)],
    ids=str,
)
@pytest.mark.parametrize("at_once", [1, 24, 4096])
def test_any_steps_of_an_epoch_can_be_asked_for(
    task: Any, monkeypatch: pytest.MonkeyPatch, steps: range, at_once: int
) -> None:
    monkeypatch.setattr(shortest_paths, "DRAWN_AT_ONCE", at_once)
    for rank in range(2):
        whole = list(task.train_batches(2, 12, None, rank, 2))
        assert len(whole) == task.steps_per_epoch(12) >= 10
        found = list(task.train_batches(2, 12, steps, rank=rank, world=2))
        for step, batch in zip(steps, found, strict=True):
            assert same(batch, whole[step])


def test_an_epoch_goes_on_where_it_was_left(task: Any) -> None:
    whole = list(base.batches(task, 1, 12))
    later = list(base.batches(task, 1, 12, first_step=4))
    assert len(whole) == task.steps_per_epoch(12)
    assert all(same(a, b) for a, b in zip(later, whole[4:], strict=True))
    assert not list(base.batches(task, 1, 12, first_step=len(whole)))


def test_parts_are_equal_pieces_in_order(task: Any) -> None:
    batch = next(base.batches(task, 0, 12))
    for count in (1, 2, 3, 12):
        parts = batch.parts(count)
        assert [part.size for part in parts] == [12 // count] * count
        assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
        assert all(len(part.inputs) == len(part.targets) == part.size for part in parts)


def test_parts_of_dicts_are_dicts() -> None:
    inputs = {"words": torch.arange(8).view(4, 2), "length": torch.arange(4)}
    first, second = Batch(inputs, {"answer": torch.arange(4)}, 4).parts(2)
    assert list(first.inputs) == ["words", "length"]
    assert second.inputs["words"].tolist() == [[4, 5], [6, 7]]
    assert (first.inputs["length"].tolist(), second.targets["answer"].tolist()) == ([0, 1], [2, 3])


def test_parts_that_would_not_be_equal_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="4 samples in 3 parts"):
        Batch(torch.zeros(4, 1), torch.zeros(4), 4).parts(3)


@pytest.mark.parametrize(
    ("batch", "world", "grad_accum_steps", "share"), [(64, 1, 1, 64), (64, 2, 4, 8), (12, 3, 2, 2)]
)
def test_a_rank_takes_its_share_in_parts(batch, world, grad_accum_steps, share) -> None:
    assert base.rank_share(batch, world, grad_accum_steps) == share


@pytest.mark.parametrize(
    ("batch", "world", "grad_accum_steps", "nearest"),
    [(64, 3, 1, 63), (64, 1, 3, 63), (64, 2, 3, 66), (1, 4, 1, 4), (100, 8, 1, 96)],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(
    batch, world, grad_accum_steps, nearest
) -> None:
    with pytest.raises(ValueError) as error:
        base.rank_share(batch, world, grad_accum_steps)
    assert str(error.value) == (
        f"batch_size={batch} does not divide by {world} ranks x trainer.grad_accum_steps="
        f"{grad_accum_steps}; the nearest that does is {nearest}"
    )
    assert base.rank_share(nearest, world, grad_accum_steps) * world * grad_accum_steps == nearest
