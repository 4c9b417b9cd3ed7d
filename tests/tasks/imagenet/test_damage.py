"""Unreadable images are named once, counted and skipped; too many are an error."""

import pytest
import torch
from helpers import one_line
from imagenet_files import WNIDS, make

from npas.tasks import base
from npas.tasks.imagenet import task as imagenet


class Constant(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 3, requires_grad=torch.is_grad_enabled())


def damage(root, *names):
    """Cut files in half, but empty the first."""
    for i, name in enumerate(names):
        path = root / "imagenet" / name
        path.write_bytes(b"" if i == 0 else path.read_bytes()[:300])


FIRST, SECOND = f"train/{WNIDS[0]}/{WNIDS[0]}_5.JPEG", f"train/{WNIDS[1]}/{WNIDS[1]}_0.JPEG"
TESTED = f"val/{WNIDS[2]}/ILSVRC2012_val_00010200.JPEG"


def test_damaged_training_images_are_named_once_and_the_next_takes_the_place(tree, caplog):
    whole = next(make(tree, flip=False).train_batches(0, 18))
    damage(tree, FIRST, SECOND)  # which follow each other
    task = make(tree, flip=False)
    for epoch in (0, 1):
        list(base.batches(task, epoch, 6))
    assert len(caplog.messages) == 2
    first, second = sorted(message.split("imagenet/")[1] for message in caplog.messages)
    assert first == f"{FIRST} is left out: it is empty"
    assert second.startswith(f"{SECOND} is left out: it is not a complete image")
    (found,) = base.batches(task, 0, 18)
    changed = (found.inputs != whole.inputs).flatten(1).any(1)
    assert int(changed.sum()) == 2
    # Images 5 and 6 are damaged, and 7, of the second class, is seen in the place of both.
    assert found.targets[changed].tolist() == [1, 1]
    assert found.targets.bincount().tolist() == [5, 7, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_limit_is_an_error_that_names_one(tree, workers):
    damage(tree, *(f"train/{WNIDS[0]}/{WNIDS[0]}_{i}.JPEG" for i in range(5)))
    task = make(tree, max_damaged=3)
    with one_line(r"more than task\.max_damaged=3, .*_\d\.JPEG"):
        list(base.batches(task, 0, 3, workers=workers))
    # What workers meet counts together, once an image.
    task = make(tree, max_damaged=5)
    for epoch in (0, 1):
        assert len(list(base.batches(task, epoch, 3, workers=workers))) == 6
    assert int(task.damaged["train"].sum()) == 5


def test_no_readable_image_and_a_limit_of_none_are_errors(tree):
    damage(tree, FIRST)
    with pytest.raises(ValueError, match=r"1 images cannot be read, .*max_damaged=0"):
        list(make(tree, max_damaged=0).train_batches(0, 18))
    for path in (tree / "imagenet").rglob("*.JPEG"):
        path.write_bytes(b"")
    task = make(tree, max_damaged=1000)
    with pytest.raises(ValueError, match="no training image of imagenet3 can be read"):
        next(task.train_batches(0, 2))
    with pytest.raises(ValueError, match="none of the 9 test samples of imagenet3 can be read"):
        task.evaluate(Constant(), "test")


@pytest.mark.parametrize("size", [3, 1])  # of 1: a batch without a readable image
def test_a_damaged_test_image_is_left_out_and_said(tree, size, caplog, monkeypatch):
    monkeypatch.setattr(imagenet.Task, "eval_batch", size)
    damage(tree, TESTED)
    task = make(tree)
    found = task.evaluate(Constant(), "test")
    assert found["accuracy"] == 100 * 3 / 8  # all answers are the first class
    assert [("left out: it is empty" in message) for message in caplog.messages] == [True, False]
    assert "ILSVRC2012_val_00010200" in caplog.messages[0]
    assert caplog.messages[1] == "1 of 9 test samples were not measured"
    caplog.clear()
    damage(tree, SECOND)
    found = make(tree).inspect()
    assert found["readable"] == "4 of 6 images tried, the first of each class"
    assert len(caplog.messages) == 2 and SECOND in caplog.messages[0]
