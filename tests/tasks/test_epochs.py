"""An epoch's batches are dealt out whole, and none is asked for that is not there."""

import pytest
import torch

from npas.tasks.common import sampler


def test_full_batches_are_counted_and_none_is_an_error_that_says_of_what() -> None:
    assert [sampler.full_batches(10, size, "samples") for size in (1, 3, 10)] == [10, 3, 1]
    with pytest.raises(ValueError, match=r"batch_size=11 is more than the 10 training images of x"):
        sampler.full_batches(10, 11, "training images of x")


def test_an_order_is_an_epoch_s_and_a_seed_s_own() -> None:
    cpu = torch.device("cpu")
    orders = [sampler.order(*of, 50, cpu).tolist() for of in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_ranks_have_equal_shares_of_each_batch_in_the_order_of_the_epoch() -> None:
    order_N = torch.arange(100, 113)
    ranks = [list(sampler.shares(order_N, 4, range(2, 0, -1), rank, 2)) for rank in (0, 1)]
    assert [share.tolist() for share in ranks[0]] == [[108, 109], [104, 105]]
    assert [share.tolist() for share in ranks[1]] == [[110, 111], [106, 107]]
    with pytest.raises(ValueError, match="batch_size=4 does not divide by 3 ranks"):
        next(sampler.shares(order_N, 4, range(2), 0, 3))
