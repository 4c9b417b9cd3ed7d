"""Tiny CIFAR sets in the format of the published ones."""

import hashlib
import pickle
from types import SimpleNamespace

import numpy as np
from torchvision import datasets


def write_cifar(root, classes, train, test):
    """Write a set in as many files as published; return what torchvision would say of it.

    An image's red tells the row, green the column, and blue the image, all counted from 1.
    """
    known = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    (root / known.base_folder).mkdir(parents=True)
    lists = []
    for listed, count in ((known.train_list, train), (known.test_list, test)):
        images = np.empty((count, 3, 32, 32), dtype=np.uint8)
        images[:, 0] = np.arange(1, 33)[:, None]
        images[:, 1] = np.arange(1, 33)
        images[:, 2] = np.arange(1, count + 1)[:, None, None]
        lists.append([])
        for (name, _), own in zip(
            listed, np.array_split(np.arange(count), len(listed)), strict=True
        ):
            labels = {"labels" if classes == 10 else "fine_labels": (own % classes).tolist()}
            data = pickle.dumps({"data": images[own].reshape(len(own), -1), **labels}, protocol=2)
            (root / known.base_folder / name).write_bytes(data)
            lists[-1].append([name, hashlib.md5(data).hexdigest()])
    names = ("base_folder", "filename", "url")
    own = {name: getattr(known, name) for name in names}
    return SimpleNamespace(**own, train_list=lists[0], test_list=lists[1])
