"""A user's own images are read as one folder a class."""

import shutil

import helpers
import pytest
import torch
from PIL import Image

from npas.config import DataConfig
from npas.tasks import images

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def root(tmp_path):
    """Return a data root with the set `pets` in three parts: 12, 6 and 3 images."""
    for count, split in ((4, "train"), (2, "test"), (1, "val")):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = 20 + 3 * i, 24 - i
                Image.new("RGB", size, (60 * label, 10, 9 * i)).save(folder / f"{i}.png")
    return tmp_path


def make(root, fraction=0.0, **keys):
    keys = {"folder": "pets", "size": 8, "resize": 10} | keys
    return helpers.make("images", root, data={"val_fraction": fraction}, ready=False, **keys)


@pytest.mark.parametrize(
    ("without", "held_out", "sizes"),
    [
        ((), 0, {"train": 12, "test": 6, "val": 3}),
        (("val",), 0, {"train": 12, "test": 6}),
        (("val",), 3, {"train": 9, "test": 6, "val": 3}),
        (("test",), 0, {"train": 12, "test": 3}),
        (("test",), 3, {"train": 9, "test": 3, "val": 3}),
    ],
)
def test_parts_are_the_folders_that_are_there(root, without, held_out, sizes):
    for split in without:
        shutil.rmtree(root / "pets" / split)
    task = make(root, held_out=held_out)
    assert task.spec.num_classes == 3 and task.name == "pets"
    assert task.has_validation == ("val" in sizes)
    task.setup()
    assert {part: len(own) for part, own in task.parts.items()} == sizes
    batch = next(task.train_batches(0, 6))
    assert batch.inputs.shape == (6, 3, 8, 8) and set(batch.targets.tolist()) <= {0, 1, 2}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 3))
    assert 0 <= task.evaluate(network, "test")["accuracy"] <= 100
    assert task.compared.published is None
    assert ("held out" in task.inspect()) == bool(held_out)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"folder": "birds"}, "birds/test there (docs/data.md), or set data.source=synthetic"),
        ({"classes": 5}, "holds 3 class folders, not the 5 of task.classes"),
        ({"held_out": 2}, "pets/val is used for validation; set it to 0"),
        ({"fraction": 0.1}, "data.val_fraction=0.1 does not apply to images: put a val/"),
    ],
)
def test_bad_input_is_one_line(root, keys, line):
    with pytest.raises(ValueError) as refused:
        make(root, **keys).setup()
    assert line in str(refused.value) and "\n" not in str(refused.value)


def test_missing_folders_are_named(root):
    for split in ("val", "test"):
        shutil.rmtree(root / "pets" / split)
    with pytest.raises(ValueError, match=r"pets has train, but neither test nor val: put class"):
        make(root)
    first, *others = sorted((root / "pets" / "train").iterdir())
    for other in others:
        shutil.rmtree(other)
    with pytest.raises(ValueError, match=f"has only the class folder '{first.name}'"):
        make(root)


def test_parts_must_have_the_same_classes_and_damage_is_named(root, caplog):
    (root / "pets/test/eel/1.png").write_bytes(b"no image")
    (root / "pets/test/eel/2.png").symlink_to("moved.png")
    task = make(root)
    task.setup()
    task.inspect()
    task.evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), "test")
    assert all(f"eel/{i}.png is left out" in caplog.text for i in (1, 2))
    (root / "pets/test/eel").rename(root / "pets/test/fox")
    with pytest.raises(ValueError, match="the class folder eel"):
        make(root).setup()


def test_a_run_keeps_its_classes_and_sees_when_they_change(root):
    data = DataConfig(root=str(root))
    config = images.settle(images.Config(folder="pets"), data)
    assert config.class_names == list(CLASSES) and config.classes == 3
    for part in ("train", "test", "val"):
        (root / "pets" / part / "cat").rename(root / "pets" / part / "zebra")
    with pytest.raises(ValueError, match=r"are not those that the run was trained with \(cat\)"):
        make(root, class_names=config.class_names).setup()
    shutil.rmtree(root / "pets")
    assert make(root, classes=3, class_names=config.class_names).spec.num_classes == 3
