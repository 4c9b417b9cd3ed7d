"""Unreadable images are named once, counted and skipped; too many are an error."""

import json
import logging

import pytest
import torch
from imagenet_files import WNIDS, encoded, make, pixels
from PIL import Image

from npas.tasks import base
from npas.tasks.imagenet import task as imagenet


class Constant(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 3, requires_grad=torch.is_grad_enabled())


def damage(root, *names):
    """Cut files in half, but empty the first and let the second be missing from then on."""
    for i, name in enumerate(names):
        path = root / "imagenet" / name
        path.write_bytes(b"" if i == 0 else path.read_bytes()[:300])


FIRST, SECOND = f"train/{WNIDS[0]}/{WNIDS[0]}_5.JPEG", f"train/{WNIDS[1]}/{WNIDS[1]}_0.JPEG"
TESTED = f"val/{WNIDS[2]}/ILSVRC2012_val_00010200.JPEG"


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_training_images_are_named_once_and_the_next_takes_the_place(tree, workers, caplog):
    whole = next(make(tree, flip=False).train_batches(0, 18))
    damage(tree, FIRST, SECOND)  # which follow each other
    task = make(tree, flip=False)
    with caplog.at_level(logging.WARNING):
        for epoch in (0, 1):
            for batch in base.batches(task, epoch, 6, workers=workers):
                task.loss(Constant(), batch)
    assert len(caplog.messages) == 2
    said = {message.split(" is left out: ")[0].split("imagenet/")[1]: message for message in
            caplog.messages}  # fmt: skip
    assert set(said) == {FIRST, SECOND}
    assert said[FIRST].endswith("it is empty") and "it is not a complete image" in said[SECOND]
    (found,) = base.batches(task, 0, 18, workers=workers)
    changed = (found.inputs != whole.inputs).flatten(1).any(1)
    assert int(changed.sum()) == 2
    # Images 5 and 6 are damaged, and 7, of the second class, is seen in the place of both.
    assert found.targets[changed].tolist() == [1, 1]
    assert found.targets.bincount().tolist() == [5, 7, 6]


def test_the_last_image_is_followed_by_the_first(tree):
    damage(tree, f"train/{WNIDS[2]}/{WNIDS[2]}_5.JPEG")
    batch = next(make(tree).train_batches(0, 18))
    assert batch.targets.bincount().tolist() == [7, 6, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_limit_is_an_error_that_names_some(tree, workers):
    names = [f"train/{WNIDS[0]}/{WNIDS[0]}_{i}.JPEG" for i in range(5)]
    damage(tree, *names)
    task = make(tree, max_damaged=3)
    with pytest.raises(ValueError, match=r"more than task\.max_damaged=3: .*_\d\.JPEG") as error:
        for batch in base.batches(task, 0, 3, workers=workers):
            task.loss(Constant(), batch)
    assert "\n" not in str(error.value) and str(error.value).count(".JPEG") == 3
    assert list(base.batches(make(tree, max_damaged=5), 0, 3, workers=workers))


def test_max_damaged_of_zero_and_no_readable_image_are_errors(tree):
    damage(tree, FIRST)
    with pytest.raises(ValueError, match=r"1 images cannot be read, .*max_damaged=0"):
        list(make(tree, max_damaged=0).train_batches(0, 18))
    for path in (tree / "imagenet").rglob("*.JPEG"):
        path.write_bytes(b"")
    task = make(tree, max_damaged=1000)
    with pytest.raises(ValueError, match="no training image of imagenet3 can be read"):
        next(task.train_batches(0, 2))
    with pytest.raises(ValueError, match="none of the 9 test images of imagenet3 can be read"):
        task.evaluate(Constant(), "test")


@pytest.mark.parametrize(("workers", "size"), [(0, 3), (2, 3), (0, 1)])
def test_a_damaged_test_image_is_left_out_and_said(
    tree,
    workers,
    size,  # of 1: a batch without a readable image
    caplog,
    monkeypatch,
):
    monkeypatch.setattr(imagenet, "EVAL_BATCH", size)
    damage(tree, TESTED)
    task = make(tree, workers=workers)
    with caplog.at_level(logging.WARNING):
        found = task.evaluate(Constant(), "test")
    assert found["accuracy"] == 100 * 3 / 8  # all answers are the first class
    assert [("left out: it is empty" in message) for message in caplog.messages] == [True, False]
    assert "ILSVRC2012_val_00010200" in caplog.messages[0]
    assert caplog.messages[1] == "1 of 9 test images were not measured"
    with pytest.raises(ValueError, match=r"1 images cannot be read, more than .*max_damaged=0"):
        make(tree, max_damaged=0).evaluate(Constant(), "test")


DAMAGED = [f"val/{WNIDS[0]}/ILSVRC2012_val_{10_000 + i:08d}.JPEG" for i in range(2)]


def meet_damage(rank, root, folder):
    """Write down what a rank of two is told when each has met two damaged images, then others."""
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)

    def told(do):
        try:
            return do()
        except ValueError as error:
            return str(error)

    def met(most):
        task = make(root, max_damaged=most)
        task.damage.flags["train"][2 * rank : 2 * rank + 2] = 1
        task.damage.check()  # its own are not too many
        return task

    task = make(root, max_damaged=2)
    found = {
        "epoch": told(lambda: met(3).sync_damage(2)),
        "let pass": told(lambda: met(4).sync_damage(2)),
        "before measuring": told(lambda: met(3).evaluate(Constant(), "test", rank, 2)),
        "while": told(lambda: make(root, max_damaged=1).evaluate(Constant(), "test", rank, 2)),
        "measured": told(lambda: task.evaluate(Constant(), "test", rank, 2)),
        "known": len(task.damage.found()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_the_limit_is_of_all_ranks_together_and_ends_all_of_them(tree, tmp_path, monkeypatch, fork):
    monkeypatch.setattr(imagenet, "EVAL_BATCH", 3)  # of which the first rank reads all damaged ones
    damage(tree, *DAMAGED)
    ranks = [fork(meet_damage, rank, tree, tmp_path) for rank in range(2)]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == other
    assert one["epoch"].startswith("4 images cannot be read, more than task.max_damaged=3: ")
    assert one["let pass"] is None
    assert one["before measuring"] == one["epoch"]
    assert one["while"].startswith("2 images cannot be read, more than task.max_damaged=1: ")
    assert one["measured"]["accuracy"] == pytest.approx(100 / 7) and one["known"] == 2


def test_a_file_that_comes_back_whole_is_no_crash_and_inspection_tries_one_of_each_class(
    tree, caplog
):
    task = make(tree)
    path = tree / "imagenet" / FIRST
    kept = path.read_bytes()
    path.unlink()
    batch = next(task.train_batches(0, 18))
    path.write_bytes(kept)
    with caplog.at_level(logging.WARNING):
        task.loss(Constant(), batch)
    assert "could not be read a moment ago" in caplog.messages.pop()
    caplog.clear()
    damage(tree, SECOND)
    with caplog.at_level(logging.WARNING):
        found = make(tree).inspect()
    assert found["readable"] == "5 of 6 images tried, the first of each class"
    assert len(caplog.messages) == 1 and SECOND in caplog.messages[0]
    with pytest.raises(ValueError, match="cannot be read"):
        make(tree, max_damaged=0).inspect()


def test_odd_but_whole_files_are_not_damaged(tree, caplog):
    image = Image.fromarray(pixels(5))
    folder = tree / "imagenet" / "train" / WNIDS[0]
    odd = (encoded(image.convert("CMYK")), encoded(image, "PNG"), encoded(image.convert("L")))
    for i, data in enumerate(odd):
        (folder / f"{WNIDS[0]}_{i}.JPEG").write_bytes(data)
    task = make(tree, max_damaged=0)
    assert next(task.train_batches(0, 18)).targets.bincount().tolist() == [6, 6, 6]
    task.damage.report()
    assert not caplog.messages
