"""ImageNet streams from folders, the same samples for any batch, rank and worker."""

from pathlib import Path

import pytest
import torch
from helpers import one_line
from imagenet_files import WNIDS, encoded, make, pixels, write_tree
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from npas.tasks.base import Batch
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


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda own: own.rename(own.parent / "imagnet"), r"not under data\.root=.* into .*train"),
        (lambda own: [(own / "val").rename(own / "x"), (own / "val").touch()],
         "val holds no class folders: put each image"),
        (lambda own: (own / "train" / WNIDS[1]).rename(own / "x"),
         r"train holds 2 class folders, not the 3 of task\.classes.*classes=2"),
        (lambda own: (own / "val" / WNIDS[1]).rename(own / "val" / "n99999999"),
         r"val lacks the class folder n01443537, unlike .*train"),
        (lambda own: empty(own / "train" / WNIDS[1]), "no valid file for the classes n01443537"),
    ],
)  # fmt: skip
def test_an_invalid_folder_tree_is_one_clear_line(tree, spoil, message):
    spoil(tree / "imagenet")
    with one_line(message):
        make(tree)


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
    assert task.inspect()["val"].endswith(" bytes; published: 50,000 images")


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


# --- batches


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
    """Answer by the mean colour."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(x.mean((2, 3)))


def test_accuracy_is_what_a_loop_with_torchvision_and_pillow_finds(kept):
    task, model = make(kept, held_out=3), Colours()
    found = task.evaluate(model, "test")
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
    held = next(task.test_batches("val", range(1)))  # seen as test images are
    index = task.parts["val"].index_N.tolist()
    image = decode(task.images["train"].read(index[0]))
    assert torch.equal(held.inputs[0], task.crops.test(image))
    assert held.targets.tolist() == task.images["train"].labels_N[index].tolist()
