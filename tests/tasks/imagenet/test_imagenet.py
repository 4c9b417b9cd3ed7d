"""ImageNet streams from folders, the same samples for any batch, rank and worker."""

import os
from pathlib import Path

import pytest
import torch
from imagenet_files import CPU, WNIDS, encoded, make, pixels, write_tree
from PIL import Image
from simulated_ranks import by_ranks
from torchvision import transforms
from torchvision.datasets import ImageFolder

from npas.config import DataConfig
from npas.tasks import base
from npas.tasks.base import Batch
from npas.tasks.common import measure
from npas.tasks.imagenet import shards
from npas.tasks.imagenet import task as imagenet
from npas.tasks.imagenet.transforms import decode


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A tree that no test changes."""
    return write_tree(tmp_path_factory.mktemp("imagenet"))


# --- the files


def test_classes_are_sorted_folders_of_all_images(tree):
    folder = tree / "imagenet" / "train" / WNIDS[0]
    image = Image.fromarray(pixels(1))
    for ending, form in ((".webp", "WEBP"), (".BMP", "BMP"), (".tif", "TIFF"), (".ppm", "PPM")):
        (folder / f"z_{form}{ending}").write_bytes(encoded(image, form))
    (folder / "a.gif").write_bytes(encoded(image, "GIF"))
    (folder.parent / "readme").write_text("no class")
    task = make(tree)
    train = task.images["train"]
    assert train.classes == sorted(WNIDS)
    assert train.labels_N.tolist() == [0] * 10 + [1] * 6 + [2] * 6
    names = [Path(train.name(i)).name for i in range(16, 22)]
    assert names == [f"n02510455_{i}.JPEG" for i in range(6)]
    assert Path(train.name(0)).read_bytes() == bytes(train.read(0))
    assert len(task.parts["test"]) == 9 and not task.has_validation
    assert all(task.decoded("train", i) is not None for i in range(6, 10))
    shards.pack({"train": train}, tree / "imagenet-shards")
    packed = shards.Shards(tree / "imagenet-shards", "train", len(WNIDS))
    assert packed.name(6).endswith("z_BMP.bmp") and packed.name(0).endswith("_0.jpg")
    assert packed.read(9) == train.read(9)


def flatten(val):
    for path in list(val.glob("*/*")):
        os.rename(path, val / path.name)
    for wnid in WNIDS:
        (val / wnid).rmdir()


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda own: own.rename(own.parent / "imagnet"), r"not under data\.root=.* into .*train"),
        (lambda own: (own / "val").rename(own / "validation"), r"class folders into .*/val"),
        (lambda own: flatten(own / "val"), r"val holds no class folders: put each image"),
        (lambda own: (own / "train" / WNIDS[1]).rename(own / "x"),
         r"train holds 2 class folders, not the 3 of task\.classes.*classes=2"),
        (lambda own: (own / "val" / WNIDS[1]).rename(own / "val" / "n99999999"),
         r"val lacks the class folder n01443537, unlike .*train"),
        (lambda own: empty(own / "train" / WNIDS[1]), "no valid file for the classes n01443537"),
        (lambda own: [(own / "val").rename(own / "x"), (own / "val").touch()], "no class"),
    ],
)  # fmt: skip
def test_an_invalid_folder_tree_is_one_clear_line(tree, spoil, said):
    spoil(tree / "imagenet")
    with pytest.raises(ValueError, match=said) as error:
        make(tree)
    assert "\n" not in str(error.value)


def test_inspection_counts_and_compares_with_the_published(kept, tmp_path, monkeypatch):
    task = make(kept, held_out=3)
    found = task.inspect()
    size = sum(path.stat().st_size for path in (kept / "imagenet" / "train").rglob("*.JPEG"))
    assert found["train"] == f"18 images of 3 classes, {size:,} bytes"
    assert task.compared.published is None  # no checksums are known
    assert found["held out"] == "3 training images, for val"
    assert found["readable"] == "6 of 6 images tried, the first of each class"
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    with pytest.raises(ValueError, match=r"18 images, not 1,281,167 .*data\.verify=warn"):
        make(kept)
    task = make(kept, verify="warn")
    assert task.compared.published is False
    assert task.inspect()["val"].endswith(" bytes; 50,000 were published")


def test_held_out_images_are_evenly_of_all_classes_and_the_same_for_every_seed(kept):
    one, other = make(kept, held_out=4, seed=0), make(kept, held_out=4, seed=1)
    held = one.parts["val"].index_N
    assert torch.equal(held, other.parts["val"].index_N) and one.has_validation
    assert one.images["train"].labels_N[held].bincount().tolist() == [2, 1, 1]
    both = torch.cat([held, one.parts["train"].index_N]).sort().values
    assert both.tolist() == list(range(18))
    for count in (16, 500):  # a class must keep something to train on
        with pytest.raises(ValueError, match=rf"task\.held_out={count} of 18 .* hold out fewer"):
            make(kept, held_out=count)
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 9)
    assert labels[imagenet.hold_out(labels, 4)].bincount().tolist() == [2, 1, 1]
    with pytest.raises(ValueError, match="a class with none"):
        imagenet.hold_out(labels, 5)


# --- batches


def same(one, other):
    return (
        torch.equal(one.inputs, other.inputs)
        and torch.equal(one.targets, other.targets)
        and one.inputs.stride() == other.inputs.stride()
        and one.size == other.size
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_any_cut_into_batches_ranks_and_workers_has_the_same_samples(kept, workers):
    task = make(kept, pca_noise=0.1)
    before = torch.get_rng_state()
    whole = next(task.train_batches(2, 16))
    assert whole.inputs.shape == (16, 3, 16, 16) and whole.inputs.dtype == torch.uint8
    assert whole.inputs.is_contiguous(memory_format=torch.channels_last)
    smaller = list(base.batches(task, 2, 4, workers=workers))
    assert torch.equal(torch.cat([b.inputs for b in smaller]), whole.inputs)
    assert torch.equal(torch.cat([b.targets for b in smaller]), whole.targets)
    ranks = [list(base.batches(task, 2, 8, rank=r, world=2, workers=workers)) for r in (0, 1)]
    dealt = [part.inputs for pair in zip(*ranks, strict=True) for part in pair]
    assert torch.equal(torch.cat(dealt), whole.inputs)
    later = list(base.batches(task, 2, 4, first_step=2, workers=workers))
    assert all(same(a, b) for a, b in zip(later, smaller[2:], strict=True))
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn from torch's generator


def test_augmentation_is_an_images_own_and_another_each_epoch_and_seed(kept):
    def images(seed, epoch, held_out=0):
        task = make(kept, seed, held_out=held_out)
        batch = next(task.train_batches(epoch, 18 - held_out))
        sums = batch.inputs.flatten(1).long().sum(1).tolist()
        return batch.targets, set(zip(batch.targets.tolist(), sums, strict=True))

    order, zero = images(0, 0)
    assert order.bincount().tolist() == [6, 6, 6]
    for seed, epoch in ((0, 1), (1, 0)):
        another, found = images(seed, epoch)
        assert not zero & found and not torch.equal(order, another)
    assert images(0, 0, held_out=3)[1] < zero  # holding out changes no other image


# --- loss and evaluation


class Keeps(torch.nn.Module):
    """Answer all the same, and keep what was shown."""

    def forward(self, x):
        self.seen = x
        return torch.tensor([[2.0, 1.0, 0.0]]).expand(len(x), -1)


def test_the_network_gets_normalised_floats_and_smoothing_is_for_training(kept):
    model, task = Keeps(), make(kept, label_smoothing=0.3)
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


class Colours(torch.nn.Module):
    """Answer by the mean colour, with weights that are there to have a device."""

    def __init__(self, classes=3):
        super().__init__()
        self.linear = torch.nn.Linear(3, classes)
        self.sizes = []

    def forward(self, x):
        assert not torch.is_grad_enabled() and not self.training
        self.sizes.append(len(x))
        return self.linear(x.mean((2, 3)))


def test_accuracy_is_what_a_loop_with_torchvision_and_pillow_finds(kept):
    task, model = make(kept, held_out=3), Colours()
    found = task.evaluate(model, "test")
    assert model.training
    model.eval()
    steps = [transforms.Resize(20), transforms.CenterCrop(16), transforms.ToTensor()]
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transform = transforms.Compose([*steps, normalize])
    dataset = ImageFolder(str(kept / "imagenet" / "val"), transform)
    right, losses = 0, []
    with torch.no_grad():
        for image, label in (dataset[i] for i in range(len(dataset))):
            scores = model(image[None])[0]
            right += int(scores.argmax()) == label
            losses.append(float(-scores.log_softmax(0)[label]))
    assert found["accuracy"] == pytest.approx(100 * right / 9)
    assert found["loss"] == pytest.approx(sum(losses) / 9, abs=0.02)
    assert found["top5_accuracy"] == 100.0  # of three classes
    held = next(task._test_batches("val", range(1)))  # seen as test images are
    index = task.parts["val"].index_N.tolist()
    image = decode(task.images["train"].read(index[0]))
    assert torch.equal(held.inputs[0], task.crops.test(image))
    assert held.targets.tolist() == task.images["train"].labels_N[index].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_counts_once_to_the_bit_over_ranks_and_workers(kept, workers, monkeypatch):
    monkeypatch.setattr(imagenet, "EVAL_BATCH", 2)
    model = Colours()
    alone = make(kept).evaluate(model, "test")
    assert model.sizes == [2, 2, 2, 2, 1]
    task = make(kept, workers=workers)

    def patch(over_ranks):
        monkeypatch.setattr(measure, "over_ranks", over_ranks)

    assert by_ranks(task, model, "test", 3, patch) == [alone] * 3


# --- synthetic data


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_generated_images_are_read_as_real_ones_and_then_are_gone(form, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = DataConfig(root="nowhere", val_fraction=None, source="synthetic")
    config = imagenet.Config(form=form, held_out=10_000)
    task, again = (imagenet.Task(config, data, seed=0, device=CPU) for _ in range(2))
    assert task.spec.input_shape == (3, 64, 64) and task.spec.num_classes == 1000
    task.setup()
    again.setup()
    counts = {name: len(part) for name, part in task.parts.items()}
    assert counts == {"train": 8, "test": 4, "val": 4}
    batch = next(task.train_batches(0, 8))
    assert batch.inputs.shape == (8, 3, 64, 64)
    assert same(next(again.train_batches(0, 8)), batch)
    # A class shows.
    test = next(task._test_batches("test", range(1)))
    own = task.images["train"]
    train = torch.stack([task.crops.test(decode(own.read(i))) for i in range(12)])
    coarse = [
        torch.nn.functional.avg_pool2d(x.float(), 16).flatten(1) for x in (train, test.inputs)
    ]
    nearest = torch.cdist(coarse[1], coarse[0]).argmin(1)
    assert torch.equal(own.labels_N[nearest], test.targets)
    assert len(list(tmp_path.iterdir())) == 2
    del task, again, own
    assert not list(tmp_path.iterdir())
