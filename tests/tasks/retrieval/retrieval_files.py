"""Write tiny sets of images and sentences as SCAN's files lie on disk, one word apart."""

import json

import numpy as np

REGIONS, WIDTH, WORD = 3, 4, 5
COUNTS = {"train": 8, "dev": 4, "test": 6}
NAMES = ["cat", "dog", "bird", "horse", "sheep", "cow", "pig", "duck"]
PHRASES = ("a {} runs", "the {} runs.", "A {}, running", "look: the {} runs", "see a {} run there")


def captions(split):
    """Five sentences of each image of a split, which tell its kind and the split."""
    return [
        f"{phrase.format(NAMES[i])} in {split}" for i in range(COUNTS[split]) for phrase in PHRASES
    ]


def features(split):
    """Features of each image: its kind by the place of a large number."""
    count = COUNTS[split]
    array = np.random.default_rng(len(split)).random((count, REGIONS, WIDTH), np.float32)
    array[np.arange(count), :, np.arange(count) % WIDTH] += 3
    return array


def write(root, name="f30k", repeated=False):
    """Write a whole set under `root` and word vectors beside it; return its folder.

    COCO's `testall` is what `test` is.
    """
    folder = root / f"{name}_precomp"
    folder.mkdir(parents=True)
    for split in [*COUNTS, "testall"] if name == "coco" else COUNTS:
        own = "test" if split == "testall" else split
        array = features(own)
        (folder / f"{split}_caps.txt").write_text("\n".join(captions(own)) + "\n")
        np.save(folder / f"{split}_ims.npy", array.repeat(5, 0) if repeated else array)
    write_vectors(root / "glove.6B.300d.txt")
    return folder


def write_vectors(path, width=WORD):
    """Write vectors of the animals and some other words, but not of all."""
    words = [*NAMES, "a", "the", "runs", "in", "unheard"]
    values = np.random.default_rng(0).normal(size=(len(words), width))
    lines = (
        f"{word} {' '.join(f'{v:.4f}' for v in own)}"
        for word, own in zip(words, values, strict=True)
    )
    path.write_text("\n".join(lines) + "\n")


def write_vocabulary(path, words):
    """Write a vocabulary as SCAN stores it; return its words' numbers."""
    found = {word: i for i, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *words])}
    path.parent.mkdir(exist_ok=True)
    back = {str(i): word for word, i in found.items()}
    path.write_text(json.dumps({"word2idx": found, "idx2word": back, "idx": len(found)}))
    return found
