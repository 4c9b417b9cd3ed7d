"""Scenes are written in the published formats, the same bytes each time."""

import hashlib

import h5py
import pytest
import torch

from npas.tasks.common import word_vectors
from npas.tasks.scenes import (
    Difficulty,
    write_bert,
    write_flickr30k,
    write_referit,
    write_scan,
    write_vectors,
)
from npas.tasks.scenes.captions import vocabulary

WIDTH = 8


def scan(root):
    counts = {"train": 5, "dev": 2, "test": 2, "testall": 3}
    write_scan(root, "coco_precomp", Difficulty(), counts, 36, WIDTH, seed=0)


WRITERS = {
    "flickr30k": lambda root: write_flickr30k(root, Difficulty(), {"train": 2}, WIDTH, 0),
    "referit": lambda root: write_referit(root, Difficulty(), {"train": 2, "val": 1}, WIDTH, 0),
    "scan": scan,
    "vectors": lambda root: write_vectors(root / "vectors.txt", 5),
}


# Of texts and features; a change is another WORLD.
SUMS = {
    "flickr30k": "68922e97c23a48c6",
    "referit": "7f626a667fba3824",
    "scan": "bb147acd195eefe2",
    "vectors": "51779f90562bc1d5",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_set_is_written_each_time_and_by_every_version(kind, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        WRITERS[kind](tmp_path / name)
    digest = hashlib.sha256()
    for path in sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file()):
        name, data = path.relative_to(tmp_path / "one"), path.read_bytes()
        assert data == (tmp_path / "other" / name).read_bytes()
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                data = b"".join(file[key][()].tobytes() for key in file)
        if path.suffix != ".jpg":  # whose bytes are Pillow's
            digest.update(f"{name}".encode() + data)
    assert digest.hexdigest()[:16] == SUMS[kind]


def test_a_split_is_the_same_whatever_others_are_written_and_another_by_another_seed(tmp_path):
    for name, counts, seed in (("a", {"train": 1, "test": 2}, 0), ("b", {"test": 1}, 0)):
        write_flickr30k(tmp_path / name, Difficulty(), counts, WIDTH, seed)
    write_flickr30k(tmp_path / "c", Difficulty(), {"test": 1}, WIDTH, seed=1)
    for kind in ("Sentences/3000000000.txt", "Annotations/3000000000.xml"):
        a, b, c = ((tmp_path / n / "flickr30k_entities" / kind).read_bytes() for n in "abc")
        assert a == b != c


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
