"""Scenes are written in the published formats, read here by plain parsers."""

import itertools
import json
import pickle
import re
import xml.etree.ElementTree as ElementTree

import h5py
import pytest
import torch
from PIL import Image

from npas.tasks.common import word_vectors
from npas.tasks.scenes import (
    Difficulty,
    write_bert,
    write_flickr30k,
    write_referit,
    write_scan,
    write_vectors,
)
from npas.tasks.scenes.captions import tell, vocabulary
from npas.tasks.scenes.language import refer
from npas.tasks.scenes.world import draw_scene

COUNTS = {"train": 24, "val": 2, "test": 3}
WIDTH = 8


@pytest.fixture(scope="module")
def flickr(tmp_path_factory):
    root = tmp_path_factory.mktemp("flickr")
    write_flickr30k(root, Difficulty(), COUNTS, WIDTH, seed=0)
    return root / "flickr30k_entities"


@pytest.fixture(scope="module")
def refclef(tmp_path_factory):
    root = tmp_path_factory.mktemp("referit")
    write_referit(root, Difficulty(), COUNTS, WIDTH, seed=0)
    return root / "refclef"


def scan(root):
    counts = {"train": 5, "dev": 2, "test": 2, "testall": 3}
    write_scan(root, "coco_precomp", Difficulty(), counts, 36, WIDTH, seed=0)


def names(folder, split):
    return (folder / f"{split}.txt").read_text().splitlines()


def jpeg_size(path):
    with Image.open(path) as image:
        assert image.format == "JPEG" and image.mode == "RGB"
        return image.size


# --- all of them

WRITERS = {
    "flickr30k": lambda root: write_flickr30k(root, Difficulty(), {"train": 2}, WIDTH, 0),
    "referit": lambda root: write_referit(root, Difficulty(), {"train": 2, "val": 1}, WIDTH, 0),
    "scan": scan,
    "vectors": lambda root: write_vectors(root / "vectors.txt", 5),
}


def test_the_same_bytes_each_time(tmp_path):
    for kind, writer in WRITERS.items():
        found = []
        for name in ("one", "other"):
            root = tmp_path / kind / name
            root.mkdir(parents=True)
            writer(root)
            paths = sorted(path for path in root.rglob("*") if path.is_file())
            found.append({str(path.relative_to(root)): path.read_bytes() for path in paths})
        assert found[0] == found[1] and found[0]


def test_a_split_is_the_same_whatever_others_are_written(flickr, tmp_path):
    write_flickr30k(tmp_path, Difficulty(), {"test": 2}, WIDTH, seed=0)
    own = tmp_path / "flickr30k_entities"
    assert names(own, "test") == names(flickr, "test")[:2]
    for name in names(own, "test"):
        for path in (f"Sentences/{name}.txt", f"Annotations/{name}.xml"):
            assert (own / path).read_bytes() == (flickr / path).read_bytes()
    write_flickr30k(tmp_path / "seed", Difficulty(), {"test": 2}, WIDTH, seed=1)
    other = tmp_path / "seed" / "flickr30k_entities"
    assert (other / path).read_bytes() != (flickr / path).read_bytes()


# --- Flickr30K Entities


PHRASE = re.compile(r"\[/EN#(\d+)/(\S+) ([^]]+)\]")


def read_boxes(path):
    root = ElementTree.parse(path).getroot()
    boxes = {}
    without = set()
    for each in root.findall("object"):
        for chain in (name.text or "" for name in each.findall("name")):
            if (box := each.find("bndbox")) is None:
                flags = {key: each.findtext(key) for key in ("scene", "nobndbox")}
                assert sorted(flags.values(), key=str) == ["0", "1"]
                without.add(chain)
            else:
                assert [edge.tag for edge in box] == ["xmin", "ymin", "xmax", "ymax"]
                boxes.setdefault(chain, []).append([int(edge.text or "") - 1 for edge in box])
    return root, boxes, without


def test_sentences_and_annotations_fit_and_are_the_scene(flickr):
    several = unrelated = 0
    listed = (flickr / "UNRELATED_CAPTIONS").read_text().splitlines()
    assert listed[0].startswith("#") and len(listed) > 1
    for name in itertools.chain(*(names(flickr, split) for split in COUNTS)):
        root, boxes, without = read_boxes(flickr / "Annotations" / f"{name}.xml")
        assert root.tag == "annotation" and root.findtext("filename") == f"{name}.jpg"
        size = [int(root.findtext(f"size/{key}") or 0) for key in ("width", "height", "depth")]
        assert size == [128, 96, 3]
        assert jpeg_size(flickr / "flickr30k-images" / f"{name}.jpg") == (128, 96)
        lines = (flickr / "Sentences" / f"{name}.txt").read_text().splitlines()
        captions = [PHRASE.findall(line) for line in lines]
        assert len(captions) == 5
        scene = draw_scene(Difficulty(), 0, int(name))
        story = tell(scene, Difficulty())
        for number, caption in enumerate(captions, 1):
            if f"{name} {number}" in listed:
                unrelated += 1
                assert not {chain for chain, *_ in caption} & {*boxes, *without}
                continue
            for chain, *_ in caption:
                meant = story.chains.get(int(chain), ())
                assert boxes.get(chain, []) == [list(scene.things[i].box) for i in meant]
                several += len(meant) > 1
                assert (chain in without) == (chain != "0" and not meant)
    assert several > 2 and unrelated == len(listed) - 1


# --- ReferIt


def test_expressions_boxes_and_images_of_refclef_belong_together(refclef):
    refs = pickle.loads((refclef / "refs(berkeley).p").read_bytes())
    instances = json.loads((refclef / "instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    annotations = {own["id"]: own for own in instances["annotations"]}
    assert len(annotations) == len(instances["annotations"]) and len(images) == 29
    for ref in refs:
        annotation = annotations[ref["ann_id"]]
        assert annotation["image_id"] == ref["image_id"]
        left, top, wide, high = annotation["bbox"]
        scene = draw_scene(Difficulty(), 0, ref["image_id"])
        (number,) = [
            i
            for i, thing in enumerate(scene.things)
            if thing.box == (left, top, left + wide, top + high)
        ]
        raw = [re.sub(r"[^a-z ]", "", own["raw"].lower()) for own in ref["sentences"]]
        assert raw == refer(scene, Difficulty())[number]
    assert len(refs) > 60
    for split, count in COUNTS.items():
        with h5py.File(refclef / f"{split}_features.h5") as file:
            assert {ref["image_id"] for ref in refs if ref["split"] == split} <= set(map(int, file))
            assert len(file) == count
            assert {own.shape for own in file.values()} == {(20, WIDTH + 5 + 4)}
    for image in images.values():
        size = jpeg_size(refclef.parent / "images" / "saiapr_tc-12" / image["file_name"])
        assert size == (image["width"], image["height"])


# --- SCAN


# --- words


def test_a_bert_knows_every_word_whole(tmp_path):
    write_bert(tmp_path / "bert", 8)
    state = torch.random.get_rng_state()
    write_bert(tmp_path / "again", 8)
    assert (torch.random.get_rng_state() == state).all()
    for path in (tmp_path / "bert").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    texts = ["A red box", " ".join(vocabulary()), "left of", "of left"]
    words = word_vectors.from_bert(
        texts, str(tmp_path / "bert"), 8, 200, torch.device("cpu"), False
    )
    assert words.lengths_U.tolist() == [3, len(vocabulary()), 2, 2]
    first, turned = (words.take(torch.tensor([i]))[0][0, :2] for i in (2, 3))
    assert not torch.allclose(first[0], turned[1], atol=1e-3)  # it reads what stands beside
    with pytest.raises(ValueError, match="word_width=7"):
        write_bert(tmp_path / "odd", 7)
