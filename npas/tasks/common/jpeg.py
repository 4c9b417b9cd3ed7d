"""Generate JPEGs and write them as the folders of ImageNet.

Every class has a coarse pattern of its own, which noise covers half. The same bytes each time.
"""

from __future__ import annotations

from pathlib import Path

from npas.tasks.cifar.synthetic import make_up

HEIGHT, WIDTH = 80, 96  # of an image, from which 64 x 64 are cut
QUALITY = 90


def write(root: Path, classes: int, train: int, test: int) -> int:
    """Write so many images into train/ and val/ under `root`; return how many classes they have.

    No more classes than there are images of either part, so that no class is without.
    """
    from PIL import Image

    filled = min(classes, train, test)
    for purpose, (split, count) in enumerate((("train", train), ("val", test))):
        images, labels_N = make_up(count, filled, HEIGHT, WIDTH, 3, 256, purpose)
        for i, (image, label) in enumerate(zip(images, labels_N, strict=True)):
            path = root / split / f"n{label:08d}" / f"n{label:08d}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, "JPEG", quality=QUALITY)
    return filled
