"""A batch holds the same samples, whole or in parts, on any number of ranks."""

import pytest
import torch

from npas import tasks
from npas.tasks import base
from npas.tasks.base import Batch, Task


class Numbers(Task):
    """A batch is the numbers of its samples."""

    name, device, samples = "x", torch.device("cpu"), "training images"

    def __init__(self, seed=0, size=13):
        self.seed, self.size = seed, size

    def setup(self): ...
    def inspect(self): ...
    def loss(self, model, batch): ...
    def evaluate(self, *of): ...

    @property
    def train_size(self):
        return self.size

    def collate(self, index_B, epoch, step):
        return Batch(index_B, step, len(index_B))


@pytest.mark.parametrize("method", ["inspect", "collate", "loss", "evaluate"])
def test_a_task_that_lacks_a_method_cannot_be_made(method):
    methods = {name: value for name, value in vars(Numbers).items() if name != method}
    with pytest.raises(TypeError, match=method):
        type("Forgetful", (Task,), methods)()


def test_an_unknown_family_is_refused_with_near_names():
    with pytest.raises(ValueError, match="choose from cifar, digits, grounding, imagenet"):
        tasks.family("_base")


@pytest.mark.parametrize(
    ("family", "slip", "message"),
    [
        ("cifar", {"classes": 20}, "10 or 100 classes"),
        ("cifar", {"image_size": 20}, "task.image_size=20: must be 32, 16 or 8"),
        ("imagenet", {"size": 300}, "task.resize=256 is less than task.size=300"),
        ("shortest_paths", {"phases": []}, "task.phases must be increasing lengths above 0"),
        ("shortest_paths", {"phases": [3, 3]}, "task.phases must be increasing lengths above 0"),
        ("shortest_paths", {"phases": [5, 1024]}, "no path of 1024 moves fits into a 32x32 grid"),
        ("shortest_paths", {"val_samples": 10**8}, "task.val_samples must be at most"),
        ("squad", {"version": "3"}, "must be 1.1 or 2.0"),
        ("squad", {"max_length": 60}, "leaves no room for a paragraph"),
        ("squad", {"stride": 318}, "task.stride=318 skips tokens: set it to at most 317"),
        ("squad", {"train_files": ["a.json"]}, "go together"),
        ("squad", {"test_file": "a.json"}, "go together"),
        ("squad", {"train_files": ["./b.json"], "test_file": "b.json"}, "must be different files"),
        ("retrieval", {"folds": 5}, "task.folds=5 is for COCO's testall: set it to 0"),
        ("retrieval", {"test": "testall"}, "set=f30k has none; set task.test=test"),
        ("retrieval", {"set": "scenes", "images": "mine"}, "task.images=mine is not read with"),
        ("retrieval", {"vectors": " "}, "task.vectors must not be empty"),
        ("grounding", {"vectors": " "}, "task.vectors must not be empty"),
        ("grounding", {"set": "scenes", "bert": "mine"}, "task.bert=mine is not read"),
        ("mlm", {"mask_rate": 0.0}, "task.mask_rate must be above 0"),
        ("mlm", {"max_length": 4}, "task.max_length must be at least 5"),
        ("lm", {"folder": "own"}, "are not for shakespeare: set task=text"),
        ("lm", {"tokenizer": "own.model"}, "are not for shakespeare: set task=text"),
        ("images", {"folder": "../pets"}, "must name a folder below data.root"),
        ("images", {"classes": 1}, "task.classes must be at least 2"),
        ("text_classification", {"label": "text"}, "task.text and task.label are both text"),
        ("text_classification", {"train_file": "a.txt"}, "must end in one of .csv, .tsv, .jsonl"),
        ("text_classification", {"val_file": "texts/./test.csv"}, "must be different files"),
        ("text_classification", {"class_names": ["a"]}, "must be at least two different labels"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_refused(family, slip, message):
    with pytest.raises(ValueError) as error:
        tasks.family(family).Config(**slip)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert tasks.family("squad").Config(stride=317).stride == 317
    assert tasks.family("retrieval").Config(set="scenes", folds=5).folds == 5


def test_full_batches_are_counted_and_an_order_depends_on_epoch_and_seed():
    assert [Numbers(size=10).steps_per_epoch(size) for size in (1, 3, 10)] == [10, 3, 1]
    with pytest.raises(ValueError, match=r"batch_size=11 is more than the 10 training images of x"):
        Numbers(size=10).steps_per_epoch(11)

    def order(seed, epoch):
        return [int(batch.inputs) for batch in Numbers(seed, 50).train_batches(epoch, 1)]

    orders = [order(*of) for of in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_ranks_have_equal_shares_of_each_batch():
    whole = [batch.inputs.tolist() for batch in Numbers().train_batches(2, 4)]
    assert len(whole) == 3
    for rank in (0, 1):
        shares = list(Numbers().train_batches(2, 4, range(2, 0, -1), rank, 2))
        own = slice(2 * rank, 2 * rank + 2)
        assert [share.inputs.tolist() for share in shares] == [whole[2][own], whole[1][own]]
        assert [share.targets for share in shares] == [2 * 3 + 2, 2 * 3 + 1]


@pytest.mark.parametrize(
    ("batch", "world", "grad_accum_steps", "nearest"),
    [(64, 3, 1, 63), (64, 1, 3, 63), (64, 2, 3, 66), (1, 4, 1, 4), (100, 8, 1, 96)],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(
    batch, world, grad_accum_steps, nearest
):
    how = f"{world} ranks x trainer.grad_accum_steps={grad_accum_steps}"
    with pytest.raises(ValueError, match=f"batch_size={batch} .* {how}; .*: {nearest}$"):
        base.rank_share(batch, world, grad_accum_steps)
    assert base.rank_share(nearest, world, grad_accum_steps) * world * grad_accum_steps == nearest


def test_parts_are_equal_pieces_in_order():
    inputs = {"words": torch.arange(8).view(4, 2), "length": torch.arange(4)}
    first, second = Batch(inputs, {"answer": torch.arange(4)}, 4).parts(2)
    assert list(first.inputs) == ["words", "length"]
    assert second.inputs["words"].tolist() == [[4, 5], [6, 7]]
    assert (first.inputs["length"].tolist(), second.targets["answer"].tolist()) == ([0, 1], [2, 3])
