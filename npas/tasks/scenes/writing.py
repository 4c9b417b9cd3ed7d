"""Write scenes in the formats of published datasets, to be read by their readers.

The scenes of a split do not depend on the other splits. The output is deterministic.
"""

import functools
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np

from npas.models import _hub
from npas.tasks.common import synthetic_text
from npas.tasks.scenes.captions import Story, marked, plain, tell, vocabulary
from npas.tasks.scenes.drawing import render
from npas.tasks.scenes.language import refer
from npas.tasks.scenes.regions import Eyes, places, propose
from npas.tasks.scenes.world import Difficulty, Scene, draw_scene
from npas.utils.progress import track

# The number of a split's first scene. Numbers are image names, as long as Flickr's.
FIRST = {"train": 1_000_000_000, "val": 2_000_000_000, "dev": 2_000_000_000}
FIRST |= {"test": 3_000_000_000, "testall": 4_000_000_000}
ELSEWHERE = 5_000_000_000  # offset of scenes that are in no split
QUALITY = 90
UNRELATED = 0.02  # fraction of images whose last caption is another image's
HEADER = "# format: <imageID> <sentence number>"


_eyes = functools.lru_cache(maxsize=1)(Eyes)


def _drawn(
    folder: Path, difficulty: Difficulty, split: str, count: int, regions: int, width: int,
    seed: int,
) -> Iterator[tuple[Scene, np.ndarray]]:  # fmt: skip
    """Yield a split's scenes and their regions' data, and write the images into a folder.

    The data are Rx(D+5+4), float32: features, `places`, and the box in pixels.
    """
    from PIL import Image

    for number in track(range(FIRST[split], FIRST[split] + count), f"drawing scenes: {split}"):
        scene = draw_scene(difficulty, seed, number)
        pixels_HW3 = render(scene, difficulty.noise)
        Image.fromarray(pixels_HW3).save(folder / f"{number}.jpg", "JPEG", quality=QUALITY)
        boxes_R4 = propose(scene, difficulty, regions)
        edges_R5 = places(boxes_R4, scene.width, scene.height)
        rows = [_eyes(width).see(pixels_HW3, boxes_R4), edges_R5, boxes_R4]
        yield scene, np.concatenate(rows, 1, dtype=np.float32)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


# --- Flickr30K Entities


def write_flickr30k(
    root: Path, difficulty: Difficulty, counts: Mapping[str, int], width: int, seed: int
) -> None:
    """Write `flickr30k_entities/` under `root`: `counts` images of "train", "val" and "test".

    Regions have `width` features. A few images have a caption of another image, listed in
    `UNRELATED_CAPTIONS` as in the real dataset, with sentences counted from 1.
    """
    folder = root / "flickr30k_entities"
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (folder / name).mkdir(parents=True)
    unrelated = [HEADER]
    for split, count in counts.items():
        names = []
        how = difficulty, split, count, difficulty.proposals, width, seed
        with h5py.File(folder / f"{split}_features.h5", "w") as features:
            for scene, rows_RX in _drawn(folder / "flickr30k-images", *how):
                name = str(scene.number)
                names.append(name)
                features[name] = rows_RX
                story = tell(scene, difficulty)
                lines = [marked(caption) for caption in story.captions]
                if scene.random("unrelated").random() < UNRELATED:
                    other = draw_scene(difficulty, seed, scene.number + ELSEWHERE)
                    lines[-1] = marked(tell(other, difficulty).captions[-1])
                    unrelated.append(f"{name} {len(lines)}")
                _write_lines(folder / "Sentences" / f"{name}.txt", lines)
                (folder / "Annotations" / f"{name}.xml").write_text(annotation(scene, story))
        _write_lines(folder / f"{split}.txt", names)
    _write_lines(folder / "UNRELATED_CAPTIONS", unrelated)


def annotation(scene: Scene, story: Story) -> str:
    """Return a scene's XML: each thing's box, in pixels from 1, with all chains about it."""
    root = ElementTree.Element("annotation")

    def child(parent: ElementTree.Element, tag: str, **values: object) -> ElementTree.Element:
        found = ElementTree.SubElement(parent, tag)
        for key, value in values.items():
            ElementTree.SubElement(found, key).text = str(value)
        return found

    ElementTree.SubElement(root, "filename").text = f"{scene.number}.jpg"
    child(root, "size", width=scene.width, height=scene.height, depth=3)
    for number, thing in enumerate(scene.things):
        of_things = {c: meant for c, meant in story.chains.items() if isinstance(meant, tuple)}
        if chains := [chain for chain, meant in of_things.items() if number in meant]:
            found = child(root, "object")
            for chain in chains:
                ElementTree.SubElement(found, "name").text = str(chain)
            edges = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
            child(found, "bndbox", **{key: pixel + 1 for key, pixel in edges})
    for chain, meant in story.chains.items():
        if isinstance(meant, str):
            whole = int(meant == "scene")
            child(root, "object", name=chain, scene=whole, nobndbox=1 - whole)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


# --- ReferIt


def write_referit(
    root: Path, difficulty: Difficulty, counts: Mapping[str, int], width: int, seed: int
) -> None:
    """Write `refclef/` and `images/saiapr_tc-12/` under `root`; arguments as `write_flickr30k`.

    A box is left, top, right - left, bottom - top.
    """
    folder, pixels = root / "refclef", root / "images" / "saiapr_tc-12"
    folder.mkdir(parents=True)
    pixels.mkdir(parents=True)
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    refs, sentences = list[dict[str, Any]](), 0
    for split, count in counts.items():
        how = difficulty, split, count, difficulty.proposals, width, seed
        with h5py.File(folder / f"{split}_features.h5", "w") as features:
            for scene, rows_RX in _drawn(pixels, *how):
                image, first = scene.number, len(annotations)
                features[str(image)] = rows_RX
                size = {"height": scene.height, "width": scene.width}
                images.append({"id": image, "file_name": f"{image}.jpg", **size})
                for i, thing in enumerate(scene.things, first):
                    left, top, right, bottom = thing.box
                    box = [left, top, right - left, bottom - top]
                    annotations.append({"id": i, "image_id": image, "bbox": box})
                for number, texts in refer(scene, difficulty).items():
                    # Every third text is capitalized and ends in a full stop.
                    numbered = enumerate(texts, sentences)
                    raw = [text if i % 3 else f"{text.capitalize()}." for i, text in numbered]
                    sentences += len(texts)
                    ref = {"image_id": image, "ann_id": first + number, "split": split}
                    refs.append({**ref, "sentences": [{"raw": text} for text in raw]})
    found = {"images": images, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(found))
    (folder / "refs(berkeley).p").write_bytes(pickle.dumps(refs, protocol=2))


# --- SCAN


def write_scan(
    root: Path, name: str, difficulty: Difficulty, counts: Mapping[str, int], regions: int,
    width: int, seed: int,
) -> None:  # fmt: skip
    """Write the arrays of dataset `name`, such as "f30k_precomp", under `root`.

    `counts` are the numbers of images of "train", "dev", "test" and "testall". An image has
    `regions` regions of `width` features. The images are written to a folder `images`.
    """
    folder = root / name
    (folder / "images").mkdir(parents=True)
    for split, count in counts.items():
        head = {"descr": "<f4", "fortran_order": False, "shape": (count, regions, width)}
        captions, names = [], []
        how = difficulty, split, count, regions, width, seed
        # Not memory-mapped: a full disk then raises an error instead of a signal.
        with open(folder / f"{split}_ims.npy", "wb") as features:
            np.lib.format.write_array_header_1_0(features, head)
            for scene, rows_RX in _drawn(folder / "images", *how):
                names.append(str(scene.number))
                features.write(rows_RX[:, :width].astype("<f4").tobytes())
                captions += [plain(caption) for caption in tell(scene, difficulty).captions]
        _write_lines(folder / f"{split}_caps.txt", captions)
        _write_lines(folder / f"{split}_ids.txt", names)


# --- words


def write_vectors(path: Path, width: int) -> None:
    """Write a vector of `width` numbers for each word of the captions, in GloVe's text format."""
    words = vocabulary()
    values = np.random.default_rng(width).normal(0, 0.4, (len(words), width))
    with open(path, "w", encoding="utf-8") as file:
        for word, own in zip(words, values, strict=True):
            file.write(f"{word} {' '.join(f'{value:.5f}' for value in own)}\n")


def write_bert(folder: Path, width: int) -> None:
    """Write a random BERT with two layers and its tokenizer, in the format of transformers.

    Raises ValueError if `width` is odd, since it has two heads.
    """
    import torch
    from transformers import BertConfig, BertModel

    if width % 2:
        raise ValueError(f"task.word_width={width} must be even, for a BERT with two heads")
    words = [*synthetic_text.SPECIAL, ".", ",", *vocabulary()]
    synthetic_text.write_wordpieces(folder, words)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * width}
    config = BertConfig(vocab_size=len(words), hidden_size=width, **shape)
    with torch.random.fork_rng(devices=[]), _hub.quietly():
        torch.manual_seed(width)
        BertModel(config).save_pretrained(folder)
