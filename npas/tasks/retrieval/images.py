"""Show what was found: the images that fit a sentence best, and the sentences of an image.

Dimensions: F folds, N images of each, S = 5 N sentences.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from npas.tasks.base import Picture, Shown
from npas.tasks.retrieval import metrics
from npas.tasks.retrieval.reader import PER_IMAGE, Split

BEST = 5  # that are shown


def examples(similarity_FSN: Tensor, images: Split, folder: Path | None, count: int) -> list[Shown]:
    """Return up to `count` samples, spread over the images: by turns a sentence and an image.

    Whatever the network, they are the same. Images are in `folder`, as <name>.jpg; without one,
    they are told by name. ValueError if it is not there.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder} is not there: set task.images to a folder under data.root")
    count = min(count, len(images))
    in_fold = similarity_FSN.shape[2]
    shown = []
    for turn in range(count):
        fold, place = divmod(turn * len(images) // count, in_fold)
        similarity_SN = similarity_FSN[fold]
        own = Split(
            images.features,
            images.captions[fold * in_fold * PER_IMAGE :][: in_fold * PER_IMAGE],
            images.names[fold * in_fold :][:in_fold],
        )
        if turn % 2 == 0:
            sentence = place * PER_IMAGE + turn // 2 % PER_IMAGE
            shown.append(_of_sentence(similarity_SN, sentence, own, folder))
        else:
            shown.append(_of_image(similarity_SN, place, own, folder))
    return shown


def _of_sentence(similarity_SN: Tensor, sentence: int, own: Split, folder: Path | None) -> Shown:
    """Show the images that fit a sentence best."""
    before = int(metrics.ranks(similarity_SN)[1][sentence])
    best = similarity_SN[sentence].sort(descending=True, stable=True).indices[:BEST].tolist()
    pictures = [
        Picture(
            _path(folder, own.names[i]),
            f"{place}. {own.names[i]} ({similarity_SN[sentence, i]:.2f})",
            right=i == sentence // PER_IMAGE,
        )
        for place, i in enumerate(best, 1)
    ]
    place = f"its image comes as number {before + 1:,} of {len(own.names):,}"
    return Shown(f"{own.captions[sentence]}\n{place}", pictures)


def _of_image(similarity_SN: Tensor, image: int, own: Split, folder: Path | None) -> Shown:
    """Show an image, and the sentences that fit it best."""
    before = int(metrics.ranks(similarity_SN)[0][image])
    best = similarity_SN[:, image].sort(descending=True, stable=True).indices[:BEST].tolist()
    path = _path(folder, own.names[image])
    pictures = [] if path is None else [Picture(path, own.names[image])]
    pictures += [
        Picture(
            None,
            f"{place}. {own.captions[i]} ({similarity_SN[i, image]:.2f})",
            right=i // PER_IMAGE == image,
        )
        for place, i in enumerate(best, 1)
    ]
    place = f"its best sentence comes as number {before + 1:,} of {len(own.captions):,}"
    return Shown(f"Image {own.names[image]}\n{place}", pictures)


def _path(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.jpg"
