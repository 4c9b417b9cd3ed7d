"""Images of all of torchvision's endings are read, and what else lies there is counted."""

from pathlib import Path

import pytest
from imagenet_files import WNIDS, encoded, make, pixels, write_tree
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from npas.tasks.imagenet import shards
from npas.tasks.imagenet.folder import ENDINGS


def test_the_endings_are_torchvisions_and_what_is_left_out_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ENDINGS == IMG_EXTENSIONS
    own = write_tree(tmp_path)
    folder = own / "imagenet" / "train" / WNIDS[0]
    image = Image.fromarray(pixels(1))
    for ending, form in ((".webp", "WEBP"), (".BMP", "BMP"), (".tif", "TIFF"), (".ppm", "PPM")):
        (folder / f"z_{form}{ending}").write_bytes(encoded(image, form))
    (folder / "more").mkdir()
    (folder / "a.gif").write_bytes(encoded(image, "GIF"))
    task = make(own)
    assert len(task.images["train"].labels_N) == 22
    assert all(task._decoded("train", i) is not None for i in range(6, 10))
    (said,) = caplog.messages
    assert "train: 2 entries of its class folders are left out" in said and "a.gif, ..." in said
    shards.pack({"train": task.images["train"]}, tmp_path / "imagenet-shards")
    packed = shards.Shards(tmp_path / "imagenet-shards", "train", len(WNIDS))
    assert packed.name(6).endswith("z_BMP.bmp") and packed.name(0).endswith("_0.jpg")
    assert packed.read(9) == task.images["train"].read(9)
