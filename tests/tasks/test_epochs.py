"""The order of an epoch's samples and each rank's share of a batch are the base class's."""

from typing import Any

import pytest
import torch

from npas.tasks.base import Batch, Task


class Numbers(Task):
    """A batch is the numbers of its samples."""

    name, device, samples = "x", torch.device("cpu"), "training images"

    def __init__(self, seed: int = 0, size: int = 13) -> None:
        self.seed, self.size = seed, size

    def setup(self) -> None: ...
    def inspect(self) -> dict[str, str]: ...
    def loss(self, model: Any, batch: Batch) -> Any: ...
    def evaluate(self, *of: Any) -> Any: ...

    @property
    def train_size(self) -> int:
        return self.size

    def collate(self, index_B: torch.Tensor, epoch: int, step: int) -> Batch:
        return Batch(index_B, step, len(index_B))


@pytest.mark.parametrize("method", ["setup", "collate", "train_size", "loss", "evaluate"])
def test_a_task_that_lacks_a_method_cannot_be_made(method: str) -> None:
    methods = {name: value for name, value in vars(Numbers).items() if name != method}
    with pytest.raises(TypeError, match=method):
        type("Forgetful", (Task,), methods)()


def test_full_batches_are_counted() -> None:
    assert [Numbers(size=10).steps_per_epoch(size) for size in (1, 3, 10)] == [10, 3, 1]
    with pytest.raises(ValueError, match=r"batch_size=11 is more than the 10 training images of x"):
        Numbers(size=10).steps_per_epoch(11)


def test_an_order_depends_on_epoch_and_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(batch.inputs) for batch in Numbers(seed, 50).train_batches(epoch, 1)]

    orders = [order(*of) for of in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_ranks_have_equal_shares_of_each_batch() -> None:
    whole = [batch.inputs.tolist() for batch in Numbers().train_batches(2, 4)]
    assert len(whole) == 3
    for rank in (0, 1):
        shares = list(Numbers().train_batches(2, 4, range(2, 0, -1), rank, 2))
        own = slice(2 * rank, 2 * rank + 2)
        assert [share.inputs.tolist() for share in shares] == [whole[2][own], whole[1][own]]
        assert [share.targets for share in shares] == [2 * 3 + 2, 2 * 3 + 1]
    with pytest.raises(ValueError, match="batch_size=4 does not divide by 3 ranks"):
        next(Numbers().train_batches(0, 4, range(2), 0, 3))
