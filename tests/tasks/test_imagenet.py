"""ImageNet streams from folders: what is there is what is seen, the same however it is cut."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from imagenet_files import CPU, WNIDS, make, write_tree

from npas.config import DataConfig
from npas.tasks import base
from npas.tasks.base import Batch
from npas.tasks.imagenet import damage
from npas.tasks.imagenet import split as split_module
from npas.tasks.imagenet import task as imagenet
from npas.tasks.imagenet import transforms as transform_module


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A tree of the test's own, to be spoiled at will."""
    return write_tree(tmp_path / "data")


# --- the files


def test_classes_are_the_sorted_folders_and_files_come_in_order(tree: Path) -> None:
    task = make(tree)
    train = task.images["train"]
    assert train.classes == sorted(WNIDS)
    assert train.labels_N.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    names = [Path(train.name(i)).name for i in range(12, 18)]
    assert names == [f"n02510455_{i}.JPEG" for i in range(6)]
    assert Path(train.name(0)).read_bytes() == bytes(train.read(0))
    assert len(task.parts["test"].index_N) == 9 and not task.has_validation


def test_what_lies_beside_the_images_is_passed_over(own: Path) -> None:
    folder = own / "imagenet" / "train"
    (folder / WNIDS[0] / "._n01440764_0.JPEG").write_bytes(b"of a Mac")
    (folder / WNIDS[0] / "notes.txt").write_text("of a person")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "readme").write_text("no class")
    assert len(make(own).images["train"].labels_N) == 18


def spoil(root: Path, what: str) -> None:
    train, val = root / "imagenet" / "train", root / "imagenet" / "val"
    if what == "nothing there":
        os.rename(root / "imagenet", root / "imagnet")
    elif what == "no val":
        os.rename(val, root / "imagenet" / "validation")
    elif what == "flat val":
        for path in list(val.glob("*/*")):
            os.rename(path, val / path.name)
        for wnid in WNIDS:
            (val / wnid).rmdir()
    elif what == "a class less":
        os.rename(train / WNIDS[1], root / WNIDS[1])
    elif what == "other in val":
        os.rename(val / WNIDS[1], val / "n99999999")
    elif what == "empty":
        for path in (train / WNIDS[1]).iterdir():
            path.unlink()
    elif what == "a file":
        os.rename(val, root / "elsewhere")
        val.write_text("")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing there", r"is not under data\.root=.*class folders into .*train, or set data\.so"),
        ("no val", r"class folders into .*imagenet/val"),
        ("flat val", r"val holds images and no class folders: move each"),
        ("a class less", r"train holds 2 class folders, not the 3 of task\.classes.*classes=2"),
        ("other in val", r"val lacks the class folder n01443537, unlike .*train"),
        ("empty", r"train/n01443537 holds no image"),
        ("a file", r"val is no folder"),
    ],
)
def test_a_tree_that_is_not_as_it_should_be_is_one_clear_line(
    own: Path, what: str, said: str
) -> None:
    spoil(own, what)
    with pytest.raises(ValueError, match=said) as error:
        make(own)
    assert "\n" not in str(error.value)


def test_the_thousand_classes_have_the_plain_name_and_shape() -> None:
    data = DataConfig(root="nowhere", val_fraction=None)
    task = imagenet.Task(imagenet.Config(), data, seed=0, device=torch.device("meta"))
    assert (task.name, task.spec.input_shape, task.spec.num_classes) == (
        "imagenet",
        (3, 224, 224),
        1000,
    )
    assert task.device == CPU  # whatever trains: it streams
    with pytest.raises(ValueError, match=r"data\.root=nowhere"):
        task.setup()


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ({"classes": 1}, "task.classes must be at least 2"),
        ({"size": 4}, "task.size must be at least 8"),
        ({"size": 300}, "task.resize=256 is less than task.size=300"),
        ({"resize": 10_000}, "task.resize must be at most"),
        ({"scale_min": 0.0}, "task.scale_min must be above 0"),
        ({"scale_min": 1.5}, "task.scale_min must be at most 1"),
        ({"pca_noise": -0.1}, "task.pca_noise must be at least 0"),
        ({"label_smoothing": 1.0}, "task.label_smoothing must be below 1"),
        ({"held_out": -1}, "task.held_out must be at least 0"),
        ({"max_damaged": -1}, "task.max_damaged must be at least 0"),
    ],
)
def test_keys_out_of_range_are_refused(slip: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        imagenet.Config(**slip)


@pytest.mark.parametrize("split", [0.1, 0.0])
def test_a_split_of_other_sets_is_refused(split: Any) -> None:
    said = rf"data\.val_fraction={split} does not apply to ImageNet, of which task\.held_out"
    with pytest.raises(ValueError, match=said):
        imagenet.Task(imagenet.Config(), DataConfig(val_fraction=split), seed=0, device=CPU)


def test_inspection_counts_and_compares_with_the_published(tree: Path) -> None:
    found = make(tree, held_out=3).inspect()
    size = sum(path.stat().st_size for path in (tree / "imagenet" / "train").rglob("*.JPEG"))
    assert found["train"] == f"18 images of 3 classes, {size:,} bytes"
    assert make(tree).compared.published is None  # no checksums are known
    assert found["held out"] == "3 training images, for val"
    assert found["readable"] == "6 of 6 images tried, the first of each class"


def test_inspection_says_how_far_a_thousand_classes_are_from_the_published(tmp_path: Path) -> None:
    wnids = tuple(f"n{i:08d}" for i in range(1000))
    for split in ("train", "val"):
        for wnid in wnids:
            (tmp_path / "imagenet" / split / wnid).mkdir(parents=True)
            (tmp_path / "imagenet" / split / wnid / "a.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1,000 images, not 1,281,167 .*data\.verify=warn"):
        make(tmp_path, classes=1000)
    task = make(tmp_path, classes=1000, max_damaged=2000, verify="warn")
    assert task.compared.published is False
    task._decoded = lambda split, index: torch.empty(0)  # type: ignore[method-assign]
    found = task.inspect()
    assert found["train"] == "1,000 images of 1,000 classes, 0 bytes; 1,281,167 were published"
    assert found["val"].endswith("; 50,000 were published")


# --- held out


def test_held_out_images_are_evenly_of_all_classes_and_the_same_for_every_seed(tree: Path) -> None:
    one, other = make(tree, held_out=4, seed=0), make(tree, held_out=4, seed=1)
    held = one.parts["val"].index_N
    assert torch.equal(held, other.parts["val"].index_N) and one.has_validation
    assert one.images["train"].labels_N[held].bincount().tolist() == [2, 1, 1]
    both = torch.cat([held, one.parts["train"].index_N]).sort().values
    assert both.tolist() == list(range(18))


@pytest.mark.parametrize("count", [16, 18, 500])
def test_a_class_must_keep_something_to_train_on(tree: Path, count: int) -> None:
    with pytest.raises(ValueError, match=rf"task\.held_out={count} of 18 .* hold out fewer"):
        make(tree, held_out=count)


def test_classes_of_unequal_size_give_what_they_can() -> None:
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 9)
    assert labels[split_module.hold_out(labels, 4)].bincount().tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match="a class with none"):
        split_module.hold_out(labels, 5)


# --- batches


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.inputs, other.inputs)
        and torch.equal(one.targets, other.targets)
        and one.inputs.stride() == other.inputs.stride()
        and one.size == other.size
    )


def test_batches_are_bytes_in_an_order_of_their_own_each_epoch(tree: Path) -> None:
    task = make(tree)
    batch, later = next(task.train_batches(0, 18)), next(task.train_batches(1, 18))
    assert batch.inputs.shape == (18, 3, 16, 16) and batch.inputs.dtype == torch.uint8
    assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.bincount().tolist() == [6, 6, 6]
    assert not torch.equal(batch.targets, later.targets)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_cut_into_batches_ranks_and_workers_has_the_same_samples(
    tree: Path, workers: int
) -> None:
    task = make(tree, pca_noise=0.1)
    whole = next(task.train_batches(2, 16))
    smaller = list(base.batches(task, 2, 4, workers=workers))
    assert torch.equal(torch.cat([b.inputs for b in smaller]), whole.inputs)
    assert torch.equal(torch.cat([b.targets for b in smaller]), whole.targets)
    ranks = [list(base.batches(task, 2, 8, rank=r, world=2, workers=workers)) for r in (0, 1)]
    dealt = [part.inputs for pair in zip(*ranks, strict=True) for part in pair]
    assert torch.equal(torch.cat(dealt), whole.inputs)
    later = list(base.batches(task, 2, 4, first_step=2, workers=workers))
    assert all(same(a, b) for a, b in zip(later, smaller[2:], strict=True))


def test_augmentation_is_an_image_s_own_and_another_each_epoch_and_seed(tree: Path) -> None:
    def images(seed: int, epoch: int) -> torch.Tensor:
        return next(make(tree, seed).train_batches(epoch, 18)).inputs.flatten(1).double().sum(1)

    zero, one, other = images(0, 0), images(0, 1), images(1, 0)
    assert not set(zero.tolist()) & set(one.tolist())
    assert not set(zero.tolist()) & set(other.tolist())


def test_holding_out_changes_no_other_image(tree: Path) -> None:
    def by_label_and_sum(held_out: int) -> set[tuple[int, int]]:
        batch = next(make(tree, held_out=held_out).train_batches(0, 18 - held_out))
        sums = batch.inputs.flatten(1).long().sum(1).tolist()
        return set(zip(batch.targets.tolist(), sums, strict=True))

    assert by_label_and_sum(3) < by_label_and_sum(0)


def test_making_batches_draws_nothing_from_torch_s_generator(tree: Path) -> None:
    task = make(tree, pca_noise=0.1)
    before = torch.get_rng_state()
    list(task.train_batches(0, 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_must_fit_the_set_and_the_ranks(tree: Path) -> None:
    task = make(tree)
    assert task.steps_per_epoch(4) == 4
    with pytest.raises(ValueError, match="more than the 18 training images of imagenet3"):
        task.steps_per_epoch(19)
    with pytest.raises(ValueError, match="does not divide by 2 ranks"):
        next(task.train_batches(0, 3, world=2))


# --- loss


def test_the_network_gets_normalised_floats_and_smoothing_is_for_training(tree: Path) -> None:
    class Keeps(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = x
            return torch.tensor([[2.0, 1.0, 0.0]]).expand(len(x), -1)

    model, task = Keeps(), make(tree, label_smoothing=0.3)
    batch = next(task.train_batches(0, 18))
    loss, sums = task.loss(model, batch)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = (batch.inputs.float() / 255 - mean) / std
    torch.testing.assert_close(model.seen, expected, atol=1e-5, rtol=1e-5)
    assert model.seen.is_contiguous() and float(sums["accuracy"]) == 600.0
    log = torch.log_softmax(torch.tensor([2.0, 1.0, 0.0]), 0)  # each class as often as another
    assert float(loss) == pytest.approx(-float(log.mean()), rel=1e-5)
    skewed = Batch(batch.inputs, torch.zeros_like(batch.targets), 18)
    smoothed = -0.7 * log[0] - 0.3 * log.mean()
    assert float(task.loss(model, skewed)[0]) == pytest.approx(float(smoothed), rel=1e-5)
    assert task.evaluate(model, "test")["loss"] == pytest.approx(-float(log.mean()), rel=1e-5)


# --- evaluation


class Colours(torch.nn.Module):
    """Answer by the mean colour, with weights that are there to have a device."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, classes)
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled() and not self.training
        self.sizes.append(len(x))
        return self.linear(x.mean((2, 3)))


def test_accuracy_is_what_a_loop_with_torchvision_and_pillow_finds(tree: Path) -> None:
    from PIL import Image
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    task, model = make(tree, classes=3), Colours()
    found = task.evaluate(model, "test")
    assert model.training
    model.eval()
    transform = transforms.Compose(
        [
            transforms.Resize(20),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    dataset = ImageFolder(str(tree / "imagenet" / "val"), transform)
    assert isinstance(dataset.loader(dataset.samples[0][0]), Image.Image)
    right, losses = 0, []
    with torch.no_grad():
        for image, label in (dataset[i] for i in range(len(dataset))):
            scores = model(image[None])[0]
            right += int(scores.argmax()) == label
            losses.append(float(-scores.log_softmax(0)[label]))
    assert found["accuracy"] == pytest.approx(100 * right / 9)
    assert found["loss"] == pytest.approx(sum(losses) / 9, abs=0.02)
    assert found["top5_accuracy"] == 100.0  # of three classes


def test_five_answers_count_for_the_second_figure(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.arange(8.0).expand(len(x), 8)  # 7 is best, then 6, 5, 4 and 3

    wnids = tuple(f"n{i:08d}" for i in range(8))
    task = make(write_tree(tmp_path, 1, 1, wnids), classes=8)
    found = task.evaluate(Fixed(), "test")
    assert found["accuracy"] == 100 / 8 and found["top5_accuracy"] == 100 * 5 / 8


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_counts_once_to_the_bit_over_ranks_and_workers(
    tree: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet, "EVAL_BATCH", 2)
    model = Colours()
    alone = make(tree).evaluate(model, "test")
    assert model.sizes == [2, 2, 2, 2, 1]
    counted: list[torch.Tensor] = []
    task = make(tree, workers=workers)

    def keep(tensor: torch.Tensor, world: int) -> torch.Tensor:
        counted.append(tensor.clone())
        return tensor

    monkeypatch.setattr(imagenet, "over_ranks", keep)
    monkeypatch.setattr(damage, "greatest_of_ranks", lambda tensor, world: tensor)
    monkeypatch.setattr(task, "_say_left_out", lambda *of: None)
    for rank in range(3):
        task.evaluate(model, "test", rank, 3)
    together = sum(counted)
    monkeypatch.setattr(imagenet, "over_ranks", lambda tensor, world: together)
    assert task.evaluate(model, "test", 0, 3) == alone


def test_held_out_images_are_seen_as_test_images_are(tree: Path) -> None:
    task = make(tree, held_out=3)
    batch = next(task._test_batches("val", range(1)))
    index = task.parts["val"].index_N.tolist()
    image = transform_module.decode(task.images["train"].read(index[0]))
    assert torch.equal(batch.inputs[0], task.crops.test(image))
    assert batch.targets.tolist() == task.images["train"].labels_N[index].tolist()


# --- synthetic data


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_made_up_images_are_read_as_real_ones_and_then_are_gone(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = DataConfig(root="nowhere", val_fraction=None, source="synthetic")
    config = imagenet.Config(form=form, held_out=10_000)
    task = imagenet.Task(config, data, seed=0, device=CPU)
    assert task.spec.input_shape == (3, 64, 64) and task.spec.num_classes == 1000
    task.setup()
    counts = {name: len(part.index_N) for name, part in task.parts.items()}
    assert counts == {"train": 8, "test": 4, "val": 4}
    batch = next(task.train_batches(0, 8))
    assert batch.inputs.shape == (8, 3, 64, 64)
    again = imagenet.Task(config, data, seed=0, device=CPU)
    again.setup()
    assert same(next(again.train_batches(0, 8)), batch)
    assert len(list(tmp_path.iterdir())) == 2
    del task, again
    assert not list(tmp_path.iterdir())
