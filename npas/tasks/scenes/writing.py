"""Write scenes as published data sets lie on disk, so that the readers of these read them.

Every split draws scenes of its own, whatever the others hold. The same bytes each time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from npas.models import _hub
from npas.tasks.cifar import synthetic
from npas.tasks.common import synthetic_text
from npas.tasks.scenes.captions import Story, marked, plain, tell, vocabulary
from npas.tasks.scenes.drawing import render
from npas.tasks.scenes.language import refer
from npas.tasks.scenes.regions import Eyes, propose
from npas.tasks.scenes.world import SHAPES, Difficulty, Scene, draw_scene

# The number of a split's first scene, which is its image's name: as long as Flickr's.
FIRST = {"train": 1_000_000_000, "val": 2_000_000_000, "dev": 2_000_000_000}
FIRST |= {"test": 3_000_000_000, "testall": 4_000_000_000}
ELSEWHERE = 5_000_000_000  # scenes that no split has are so much further on
QUALITY = 90
UNRELATED = 0.02  # part of the images whose last caption is another's
HEADER = "# format: <imageID> <sentence number>"


def scenes(difficulty: Difficulty, split: str, count: int, seed: int) -> Iterator[Scene]:
    """Draw a split's scenes, in order."""
    for number in range(FIRST[split], FIRST[split] + count):
        yield draw_scene(difficulty, seed, number)


def picture(
    path: Path, scene: Scene, difficulty: Difficulty, regions: int, eyes: Eyes
) -> np.ndarray:
    """Write a scene's image, and return what an HDF5 file has of so many regions of it.

    That is R x (D + 5 + 4), float32: their numbers, then the place of each as parts of the image
    and its part of the area, then first and last pixel across and down.
    """
    from PIL import Image

    pixels_HW3 = render(scene, difficulty.noise)
    Image.fromarray(pixels_HW3).save(path, "JPEG", quality=QUALITY)
    boxes_R4 = propose(scene, difficulty, regions)
    height, width = scene.height, scene.width
    sides_R2 = boxes_R4[:, 2:] - boxes_R4[:, :2] + 1
    parts_R4 = boxes_R4 / np.array([width, height, width, height], dtype=np.float32)
    area_R1 = sides_R2.prod(1, keepdims=True) / (width * height)
    features_RD = eyes.see(pixels_HW3, boxes_R4)
    return np.concatenate([features_RD, parts_R4, area_R1, boxes_R4], 1, dtype=np.float32)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


# --- Flickr30K Entities


def write_flickr30k(
    root: Path, difficulty: Difficulty, counts: Mapping[str, int], width: int, seed: int
) -> None:
    """Write `flickr30k_entities/` under `root`, with so many images of "train", "val" and "test".

    Regions have `width` numbers each. A few images have a caption that is none of theirs, named in
    `UNRELATED_CAPTIONS` as the real ones are: sentences count from 1.
    """
    folder = root / "flickr30k_entities"
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (folder / name).mkdir(parents=True)
    eyes = Eyes(width)
    unrelated = [HEADER]
    for split, count in counts.items():
        names = []
        with h5py.File(folder / f"{split}_features.h5", "w") as features:
            for scene in scenes(difficulty, split, count, seed):
                name = str(scene.number)
                names.append(name)
                path = folder / "flickr30k-images" / f"{name}.jpg"
                features[name] = picture(path, scene, difficulty, difficulty.proposals, eyes)
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
    """Return the XML of a scene: each thing's box with all chains that mean it, counted from 1."""
    chains_of: dict[int, list[int]] = defaultdict(list)
    for chain, meant in story.chains.items():
        for number in meant:
            chains_of[number].append(chain)
    objects = []
    for number, chains in sorted(chains_of.items()):
        edges = zip(("xmin", "ymin", "xmax", "ymax"), scene.things[number].box, strict=True)
        box = "".join(f"\t\t\t<{key}>{pixel + 1}</{key}>\n" for key, pixel in edges)
        objects.append((chains, f"\t\t<bndbox>\n{box}\t\t</bndbox>\n"))
    for chain, meant in story.chains.items():
        if not meant:
            whole = int(chain in story.scenes)
            flags = f"\t\t<scene>{whole}</scene>\n\t\t<nobndbox>{1 - whole}</nobndbox>\n"
            objects.append(([chain], flags))
    parts = [
        "\t<object>\n"
        + "".join(f"\t\t<name>{chain}</name>\n" for chain in chains)
        + f"{rest}\t</object>\n"
        for chains, rest in objects
    ]
    return (
        "<annotation>\n"
        f"\t<filename>{scene.number}.jpg</filename>\n"
        f"\t<size>\n\t\t<width>{scene.width}</width>\n\t\t<height>{scene.height}</height>\n"
        "\t\t<depth>3</depth>\n\t</size>\n" + "".join(parts) + "</annotation>\n"
    )


# --- ReferIt


def write_referit(
    root: Path, difficulty: Difficulty, counts: Mapping[str, int], width: int, seed: int
) -> None:
    """Write `refclef/` and `images/saiapr_tc-12/` under `root`: as `write_flickr30k`, for ReferIt.

    A box is left, top and how far right and bottom pixel are from these.
    """
    folder, pixels = root / "refclef", root / "images" / "saiapr_tc-12"
    folder.mkdir(parents=True)
    pixels.mkdir(parents=True)
    eyes = Eyes(width)
    found: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    found["categories"] = [
        {"id": i, "name": shape, "supercategory": "thing"} for i, shape in enumerate(SHAPES, 1)
    ]
    refs: list[dict[str, Any]] = []
    sentences = 0
    for split, count in counts.items():
        with h5py.File(folder / f"{split}_features.h5", "w") as features:
            for scene in scenes(difficulty, split, count, seed):
                name = str(scene.number)
                path = pixels / f"{name}.jpg"
                features[name] = picture(path, scene, difficulty, difficulty.proposals, eyes)
                size = {"height": scene.height, "width": scene.width}
                found["images"].append({"id": scene.number, "file_name": path.name, **size})
                first = len(found["annotations"])
                found["annotations"] += _annotations(scene, first)
                for thing, texts in refer(scene, difficulty).items():
                    annotation = found["annotations"][first + thing]
                    refs.append(_ref(annotation, len(refs), split, texts, sentences))
                    sentences += len(texts)
    (folder / "instances.json").write_text(json.dumps(found))
    (folder / "refs(berkeley).p").write_bytes(synthetic.python2_pickle(refs))


def _annotations(scene: Scene, first: int) -> list[dict[str, Any]]:
    found = []
    for i, thing in enumerate(scene.things, first):
        left, top, right, bottom = thing.box
        box = [left, top, right - left, bottom - top]
        found.append(
            {
                "id": i,
                "image_id": scene.number,
                "category_id": SHAPES.index(thing.shape) + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
        )
    return found


def _ref(
    annotation: dict[str, Any], number: int, split: str, texts: list[str], first: int
) -> dict[str, Any]:
    """Return what is said of an annotation; every third text as it may have been typed."""
    sentences = [
        {
            "raw": f"{text.capitalize()}." if (first + i) % 3 == 0 else text,
            "sent": text,
            "tokens": text.split(),
            "sent_id": first + i,
        }
        for i, text in enumerate(texts)
    ]
    return {
        "ref_id": number,
        "ann_id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "file_name": f"{annotation['image_id']}_{annotation['id']}.jpg",
        "split": split,
        "sentences": sentences,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
    }


# --- SCAN


def write_scan(
    root: Path,
    name: str,
    difficulty: Difficulty,
    counts: Mapping[str, int],
    regions: int,
    width: int,
    seed: int,
) -> None:
    """Write the arrays of set `name` (as "f30k_precomp") under `root`, with so many images a split.

    Splits are "train", "dev", "test" and "testall". An image has so many regions of so many
    numbers; the images themselves come into a folder `images` beside the arrays.
    """
    folder = root / name
    (folder / "images").mkdir(parents=True)
    eyes = Eyes(width)
    for split, count in counts.items():
        head = {"descr": "<f4", "fortran_order": False, "shape": (count, regions, width)}
        captions, names = [], []
        # Image by image, and not through memory: a disk that is full is an error then, no signal.
        with open(folder / f"{split}_ims.npy", "wb") as features:
            np.lib.format.write_array_header_1_0(features, head)
            for scene in scenes(difficulty, split, count, seed):
                names.append(str(scene.number))
                image = folder / "images" / f"{names[-1]}.jpg"
                found_RX = picture(image, scene, difficulty, regions, eyes)
                features.write(found_RX[:, :width].astype("<f4").tobytes())
                captions += [plain(caption) for caption in tell(scene, difficulty).captions]
        _write_lines(folder / f"{split}_caps.txt", captions)
        _write_lines(folder / f"{split}_ids.txt", names)


# --- words


def write_vectors(path: Path, width: int) -> None:
    """Write a vector of `width` numbers for each word of the world, as GloVe's text files do."""
    words = vocabulary()
    values = np.random.default_rng(width).normal(0, 0.4, (len(words), width))
    with open(path, "w", encoding="utf-8") as file:
        for word, own in zip(words, values, strict=True):
            file.write(f"{word} {' '.join(f'{value:.5f}' for value in own)}\n")


def write_bert(folder: Path, width: int) -> None:
    """Write a BERT of two layers and of random weights, as transformers stores one, and its words.

    ValueError if `width` is odd: it has two heads.
    """
    import torch
    from transformers import BertConfig, BertModel

    if width % 2:
        raise ValueError(f"task.word_width={width}: a BERT of two heads has an even one")
    folder.mkdir(parents=True)
    words = [*synthetic_text.SPECIAL, ".", ",", *vocabulary()]
    _write_lines(folder / "vocab.txt", words)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        with _hub.quietly():
            BertModel(config).save_pretrained(folder)
