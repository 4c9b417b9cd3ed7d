"""Tiny grounding sets in the exact formats of the published ones, and networks for them."""

import json
import pickle

import h5py
import helpers
import numpy as np
import torch
from torch import nn

WIDTH, WORD_WIDTH = 6, 3
HEIGHT_OF, WIDTH_OF = 60, 100  # of an image
WORDS = ["a", "the", "man", "woman", "red", "hat", "dog", "two", "men", "left", "of", "blue", "car"]
COUNTS = (("train", 10, 9), ("val", 20, 3), ("test", 30, 4))
IDS = {split: [f"{first}{i}" for i in range(count)] for split, first, count in COUNTS}
# As the annotators wrote it: several types, a chain twice, things unseen, the whole scene, two
# boxes of one chain, and a chain that shares its box.
CAPTIONS = [
    "[/EN#1/people A man] in [/EN#2/clothing/other a red hat] runs down [/EN#3/scene the street] .",
    "[/EN#4/people Two men] and [/EN#5/animals a dog] enjoy [/EN#0/notvisual it] .",
    "[/EN#1/people The man] runs with [/EN#6/other a ball] .",
    "[/EN#5/animals the dog] is left of [/EN#7/vehicles a blue car] .",
    "Somebody runs .",
]
# By chain, in pixels from 1 on, as the XML has them.
BOXES = {
    "1": [(11, 11, 30, 50)],
    "2": [(15, 11, 25, 18)],
    "4": [(11, 11, 30, 50), (41, 21, 60, 60)],
    "5": [(71, 31, 100, 60)],
    "7": [(1, 1, 40, 20)],
}
WITHOUT = {"3": (1, 0), "6": (0, 1)}  # chains that are the scene, or nowhere
BOXED = 7  # phrases of an image that have a box


def annotation(boxes=BOXES):
    """Write an image's annotation; chains with the same box are names of one object."""
    chains = {}
    for chain, own in boxes.items():
        for box in own:
            chains.setdefault(tuple(box), []).append(chain)
    objects = ""
    for box, names in chains.items():
        edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        inner = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
        named = "".join(f"<name>{chain}</name>" for chain in names)
        objects += f"<object>{named}<bndbox>{inner}</bndbox></object>\n"
    for chain, (scene, nowhere) in WITHOUT.items():
        inner = f"<name>{chain}</name><scene>{scene}</scene><nobndbox>{nowhere}</nobndbox>"
        objects += f"<object>{inner}</object>\n"
    size = f"<width>{WIDTH_OF}</width><height>{HEIGHT_OF}</height><depth>3</depth>"
    return f"<annotation>\n<size>{size}</size>\n{objects}</annotation>\n"


def proposals(seed, count):
    """Draw boxes of an image: some near those that are asked for, some anywhere. Rx4."""
    rng = np.random.default_rng(seed)
    true = [(10, 10, 29, 49), (14, 10, 24, 17), (10, 10, 59, 59), (70, 30, 99, 59), (0, 0, 39, 19)]
    near = [np.array(true[i % 5]) + rng.integers(-3, 4, 4) for i in range(count // 2)]
    corners = rng.integers(0, [WIDTH_OF - 20, HEIGHT_OF - 20], (count - len(near), 2))
    sides = rng.integers(3, 20, (count - len(near), 2))
    boxes = np.concatenate([np.array(near), np.concatenate([corners, corners + sides], 1)])
    last = np.array([WIDTH_OF - 1, HEIGHT_OF - 1] * 2)
    return rng.permutation(boxes).clip(0, last).astype(np.float32)


def write_features(path, names, width=WIDTH, between=5, count=12):
    """Write regions of these images: features, `between` numbers of the place, and the box."""
    with h5py.File(path, "w") as file:
        for i, name in enumerate(names):
            boxes = proposals(i, count + i % 3)
            rng = np.random.default_rng(i)
            features = rng.normal(size=(len(boxes), width))
            rest = np.zeros((len(boxes), between))
            rows = np.concatenate([features, rest, boxes], 1).astype(np.float32)
            file.create_dataset(name, data=rows, compression="lzf")


def write_flickr(root):
    """Write a set as Flickr30K Entities lies, without any image, and return its folder."""
    folder = root / "flickr30k_entities"
    (folder / "Sentences").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for split, names in IDS.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            (folder / "Sentences" / f"{name}.txt").write_text("\n".join(CAPTIONS) + "\n")
            (folder / "Annotations" / f"{name}.xml").write_text(annotation())
        write_features(folder / f"{split}_features.h5", names)
    unrelated = "# format: <imageID> <sentence number>\n101 3\n999 1\n"
    (folder / "UNRELATED_CAPTIONS").write_text(unrelated)
    write_words(root)
    return folder


def write_words(root):
    rng = np.random.default_rng(0)
    lines = [" ".join([w, *(f"{v:.4f}" for v in rng.normal(size=WORD_WIDTH))]) for w in WORDS]
    (root / "glove.6B.300d.txt").write_text("\n".join(lines) + "\n")


def expressions():
    """Return what refs(berkeley).p holds: two things of each image, of two and one expressions."""
    refs = []
    for split, names in IDS.items():
        for name in names:
            for thing, texts in enumerate((["The man with Caf\u00e9 hat", "man"], ["dog  LEFT"])):
                number = 10 * int(name) + thing
                said = [{"raw": text, "sent": text.lower(), "sent_id": 0} for text in texts]
                ref = {"ref_id": number, "ann_id": number, "category_id": thing, "sent_ids": [0, 1]}
                refs.append({**ref, "image_id": int(name), "split": split, "sentences": said})
    return refs


def instances():
    """Return what instances.json holds; boxes are left, top, width and height."""
    size = {"width": WIDTH_OF, "height": HEIGHT_OF}
    numbers = [int(name) for own in IDS.values() for name in own]
    boxes = ([10, 10, 20, 40], [70, 30, 30, 30.0])
    return {
        "info": {"version": "1.0"},
        "images": [{"id": n, "file_name": f"02/images/{n}.jpg", **size} for n in numbers],
        "annotations": [
            {"id": 10 * n + thing, "image_id": n, "category_id": thing, "bbox": box, "area": 0}
            for n in numbers
            for thing, box in enumerate(boxes)
        ],
    }


def write_refclef(root):
    """Write a set as refer lays RefCLEF out, without any image, and return its folder."""
    folder = root / "refclef"
    folder.mkdir(parents=True)
    (folder / "refs(berkeley).p").write_bytes(pickle.dumps(expressions(), protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances()))
    for split, names in IDS.items():
        write_features(folder / f"{split}_features.h5", names)
    write_words(root)
    return folder


WRITERS = {"flickr30k": write_flickr, "referit": write_refclef}


def make(root, name="flickr30k", seed=0, **keys):
    """Return a task on files that lie under `root`, ready for use."""
    sizes = {"region_width": WIDTH, "word_width": WORD_WIDTH, "regions": 13, "phrases": 5}
    data = {k: keys.pop(k) for k in ("source", "synthetic", "val_fraction", "workers") if k in keys}
    verify = keys.pop("verify", "warn")  # nothing here has as many images as was published
    data, keys = {"verify": verify, **data}, {"set": name, **sizes, **keys}
    return helpers.make("grounding", root, seed, data, **keys)


class Network(nn.Module):
    """Score by products of sums."""

    def __init__(self, task):
        super().__init__()
        torch.manual_seed(0)
        width = {name: task.spec.width(name) for name in ("words", "regions")}
        self.words = nn.Linear(width["words"], 4)
        self.regions = nn.Linear(width["regions"] + 5, 4)
        self.dropout = nn.Dropout()

    def forward(self, words, lengths, regions, boxes):
        words_BPE = self.words(words.sum(2) / lengths[..., None])
        regions_BRE = self.dropout(self.regions(torch.cat([regions, boxes], 2)))
        return words_BPE @ regions_BRE.transpose(1, 2)
