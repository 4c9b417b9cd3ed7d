"""Tiny ImageNets in the form of the published one."""

import io

import helpers
import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02510455")


def pixels(seed, height=40, width=52):
    """Smooth random pixels, as JPEG keeps them: height x width x 3."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_tree(root, train=6, val=3, wnids=WNIDS):
    """Write so many JPEGs a class, of several sizes, under root/imagenet."""
    for part, (split, count) in enumerate((("train", train), ("val", val))):
        for label, wnid in enumerate(wnids):
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                seed = 10_000 * part + 100 * label + i
                image = Image.fromarray(pixels(seed, 36 + 4 * (i % 3), 52 - 8 * (i % 2)))
                name = f"{wnid}_{i}" if split == "train" else f"ILSVRC2012_val_{seed:08d}"
                (folder / f"{name}.JPEG").write_bytes(encoded(image, quality=90))
    return root


def make(root, seed=0, workers=0, verify="refuse", **keys):
    """Make the task for a tree of `write_tree`, with crops of 16 pixels unless keys say others."""
    keys = {"classes": len(WNIDS), "size": 16, "resize": 20} | keys
    return helpers.make("imagenet", root, seed, {"workers": workers, "verify": verify}, **keys)
