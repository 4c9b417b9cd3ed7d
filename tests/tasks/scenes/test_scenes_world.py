"""Scenes are drawn from a seed and a number, and are as hard as the keys say."""

import numpy as np
import pytest

from npas.tasks.scenes import Difficulty
from npas.tasks.scenes.drawing import render
from npas.tasks.scenes.language import alike
from npas.tasks.scenes.regions import Eyes, propose, union
from npas.tasks.scenes.world import Thing, draw_scene, relation


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


@pytest.mark.parametrize(
    ("centre", "where"),
    [
        ((20, 50), "left of"),
        ((80, 60), "right of"),
        ((50, 20), "above"),
        ((45, 90), "below"),
        ((20, 22), None),  # as far above as to the left
        ((50, 50), None),
    ],
)
def test_where_a_thing_is_seen_from_another(centre, where):
    def at(x, y):
        return Thing("star", "red", "small", "plain", (x - 5, y - 5, x + 5, y + 5))

    assert relation(at(*centre), at(50, 50)) == where


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"least": 6, "most": 5}, "task.scenes.most must be at least 6"),
        ({"proposals": 6}, "task.scenes.proposals must be at least 7"),
        ({"height": 100, "width": 201}, "one may be at most twice the other"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(keys, says):
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
