"""Scenes are drawn from a seed and a number, and written once, the same bytes each time."""

import hashlib
import multiprocessing
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from npas.tasks.common import word_vectors
from npas.tasks.scenes import dataset, writing
from npas.tasks.scenes.captions import vocabulary
from npas.tasks.scenes.dataset import Made
from npas.tasks.scenes.drawing import render
from npas.tasks.scenes.language import alike
from npas.tasks.scenes.regions import Eyes, propose, union
from npas.tasks.scenes.world import Difficulty, draw_scene

# --- drawing


def drawn(count=60, **keys):
    return [draw_scene(Difficulty(**keys), 0, number) for number in range(count)]


def test_a_scene_depends_on_seed_and_number_alone():
    scenes = drawn(20)
    assert scenes == drawn(20) and draw_scene(Difficulty(), 0, 7) == scenes[7]
    assert len({scene.things for scene in scenes}) == 20
    assert draw_scene(Difficulty(), 1, 7).things != scenes[7].things


def test_so_many_things_and_all_of_them_to_be_seen():
    assert {len(scene.things) for scene in drawn()} == {4, 5, 6, 7}
    for keys in ({"height": 64, "width": 64}, {"least": 8, "most": 8, "sizes": 3}):
        for scene in drawn(30, **keys):
            covers = [pixels(thing) for thing in scene.things]
            for i, (thing, own) in enumerate(zip(scene.things, covers, strict=True)):
                left, top, right, bottom = thing.box
                assert 0 <= left < right < scene.width and 0 <= top < bottom < scene.height
                hidden = [len(own & other) for other in covers[i + 1 :]]
                assert max(hidden, default=0) <= 0.2 * len(own)


def pixels(thing):
    left, top, right, bottom = thing.box
    return {(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)}


def test_what_cannot_be_is_refused_by_its_key():
    for keys, says in (
        ({"least": 6, "most": 5}, "task.scenes.most must be at least 6"),
        ({"proposals": 6}, "task.scenes.proposals must be at least 7"),
        ({"height": 100, "width": 201}, "one may be at most twice the other"),
    ):
        with pytest.raises(ValueError, match=says):
            Difficulty(**keys)


def test_as_many_boxes_as_wanted_within_the_image_a_good_one_of_every_thing():
    for number in range(30):
        scene, count = draw_scene(Difficulty(), 0, number), (7, 20, 36)[number % 3]
        boxes_R4 = propose(scene, Difficulty(jitter=0.3), count)
        assert boxes_R4.shape == (count, 4) and boxes_R4.dtype == np.float32
        assert (boxes_R4 >= 0).all() and (boxes_R4[:, 2:] <= [127, 95]).all()
        assert (boxes_R4[:, 2:] - boxes_R4[:, :2] >= 3).all()
        boxes = {tuple(box) for box in propose(scene, Difficulty(jitter=0), 20).tolist()}
        assert {tuple(map(float, thing.box)) for thing in scene.things} <= boxes
        for group in alike(scene):
            assert tuple(map(float, union([scene.things[i].box for i in group]))) in boxes


def test_features_are_the_same_whatever_regions_are_seen_with_them():
    scene = draw_scene(Difficulty(), 0, 0)
    pixels, boxes_R4 = render(scene, 10), propose(scene, Difficulty(), 20)
    seen_RD = Eyes(64).see(pixels, boxes_R4)
    assert seen_RD.shape == (20, 64) and 0.3 < (seen_RD > 0).mean() < 0.7
    one_by_one = [Eyes(64).see(pixels, boxes_R4[i : i + 1]) for i in range(20)]
    assert (np.concatenate(one_by_one) == seen_RD).all()  # to the bit


# --- writing


WIDTH = 8


SCAN = {"train": 5, "dev": 2, "test": 2, "testall": 3}, 36, WIDTH, 0
FEW, PLAIN = {"train": 2, "val": 1}, Difficulty()
# The sums of texts and features, and writers; a change is another WORLD.
WRITERS = [
    ("68922e97c23a48c6", lambda to: writing.write_flickr30k(to, PLAIN, {"train": 2}, WIDTH, 0)),
    ("7f626a667fba3824", lambda to: writing.write_referit(to, PLAIN, FEW, WIDTH, 0)),
    ("bb147acd195eefe2", lambda to: writing.write_scan(to, "coco_precomp", PLAIN, *SCAN)),
    ("51779f90562bc1d5", lambda to: writing.write_vectors(to / "vectors.txt", 5)),
]


@pytest.mark.parametrize(("expected", "write"), WRITERS)
def test_the_same_set_is_written_each_time_and_by_every_version(expected, write, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    digest = hashlib.sha256()
    for path in sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file()):
        name, data = path.relative_to(tmp_path / "one"), path.read_bytes()
        assert data == (tmp_path / "other" / name).read_bytes()
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                data = b"".join(file[key][()].tobytes() for key in file)
        if path.suffix != ".jpg":  # whose bytes are Pillow's
            digest.update(f"{name}".encode() + data)
    assert digest.hexdigest()[:16] == expected


def test_a_split_is_the_same_whatever_others_are_written_and_another_by_another_seed(tmp_path):
    cases = ("a", {"train": 1, "test": 2}, 0), ("b", {"test": 1}, 0), ("c", {"test": 1}, 1)
    for name, counts, seed in cases:
        writing.write_flickr30k(tmp_path / name, Difficulty(), counts, WIDTH, seed)
    for kind in ("Sentences/3000000000.txt", "Annotations/3000000000.xml"):
        a, b, c = ((tmp_path / n / "flickr30k_entities" / kind).read_bytes() for n in "abc")
        assert a == b != c


def test_a_bert_knows_every_word_whole(tmp_path):
    writing.write_bert(tmp_path / "bert", 8)
    state = torch.random.get_rng_state()
    writing.write_bert(tmp_path / "again", 8)
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
        writing.write_bert(tmp_path / "odd", 7)


# --- sets on disk


def ensure(root, write, form="scan", regions=8, **changes):
    given = {"scenes": Difficulty(), "made": Made(), "region_width": 4, "word_width": 4}
    config, data = SimpleNamespace(**given | changes), SimpleNamespace(synthetic=None)
    task = SimpleNamespace(config=config, data=data, source="real", root=root)
    return dataset.SceneTask.find(task, form, {"regions": regions}, lambda new, *_: write(new))


def write_one(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("whole")


def refuse(folder):
    raise AssertionError("written twice")


def test_a_set_is_written_once(tmp_path):
    root = tmp_path / "data"  # which is made
    folder = ensure(root, write_one)
    assert folder.parent == root and (folder / "inner" / "file").read_text() == "whole"
    assert ensure(root, refuse) == folder
    assert [path.name for path in root.iterdir()] == [folder.name]


def test_whatever_decides_its_bytes_decides_its_name(tmp_path):
    ways = [{}, {"form": "other"}, {"regions": 9}, {"region_width": 5}, {"word_width": 5}]
    ways += [{"scenes": Difficulty(jitter=0.2)}, {"made": Made(train=3)}]
    assert len({ensure(tmp_path, write_one, **changes) for changes in ways}) == len(ways)


def forever(root, begun):
    def write(folder):
        (folder / "half").write_text("of it")
        begun.set()
        time.sleep(60)

    ensure(root, write)


def test_what_a_killed_process_leaves_is_taken_for_no_set(tmp_path, fork):
    begun = multiprocessing.get_context("fork").Event()
    process = fork(forever, tmp_path, begun)
    assert begun.wait(30)
    process.kill()
    process.join()
    folder = ensure(tmp_path, write_one)
    assert [path.name for path in folder.iterdir()] == ["inner"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    def full(folder):
        (folder / "half").write_text("of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"scenes-\w{8} cannot be written \(No space left on dev"):
        ensure(tmp_path, full)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .*: set data.root to a folder"):
        ensure(file, write_one)
