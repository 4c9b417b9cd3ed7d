"""Proposals resemble a detector's, and region features follow the pixels."""

import numpy as np
import torch
from torch import nn

from npas.tasks.scenes import Difficulty
from npas.tasks.scenes.drawing import render
from npas.tasks.scenes.language import alike
from npas.tasks.scenes.regions import Eyes, propose, union
from npas.tasks.scenes.world import COLOURS, draw_scene

# --- proposals


def test_as_many_boxes_as_wanted_within_the_image_a_good_one_of_every_thing():
    for number in range(30):
        scene, count = draw_scene(Difficulty(), 0, number), (7, 20, 36)[number % 3]
        difficulty = Difficulty(jitter=0.3)
        boxes_R4 = propose(scene, difficulty, count)
        assert boxes_R4.shape == (count, 4) and boxes_R4.dtype == np.float32
        assert (boxes_R4 == boxes_R4.round()).all() and (boxes_R4 >= 0).all()
        assert (boxes_R4[:, 2:] <= [127, 95]).all()
        assert (boxes_R4[:, 2:] - boxes_R4[:, :2] >= 3).all()
        assert (propose(scene, difficulty, count) == boxes_R4).all()
        boxes = {tuple(box) for box in propose(scene, Difficulty(jitter=0), 20).tolist()}
        assert {tuple(map(float, thing.box)) for thing in scene.things} <= boxes
        for group in alike(scene):
            assert tuple(map(float, union([scene.things[i].box for i in group]))) in boxes


# --- what is seen


def test_numbers_are_the_same_whatever_regions_are_seen_with_them():
    difficulty = Difficulty()
    scene = draw_scene(difficulty, 0, 0)
    pixels, boxes_R4 = render(scene, 10), propose(scene, difficulty, 20)
    seen_RD = Eyes(64).see(pixels, boxes_R4)
    assert seen_RD.shape == (20, 64) and seen_RD.dtype == np.float32
    assert (seen_RD >= 0).all() and 0.3 < (seen_RD > 0).mean() < 0.7
    one_by_one = [Eyes(64).see(pixels, boxes_R4[i : i + 1]) for i in range(20)]
    assert (np.concatenate(one_by_one) == seen_RD).all()  # to the bit
    assert Eyes(1).see(pixels, boxes_R4).shape == (20, 1)


def test_colours_and_shapes_can_be_learned_from_the_numbers():
    difficulty, eyes = Difficulty(jitter=0.05), Eyes(256)
    colours, shapes = list(COLOURS), ["circle", "square", "triangle", "star", "cross"]
    features, labels = [], []
    for number in range(200):
        scene = draw_scene(difficulty, 0, number)
        boxes_R4 = np.array([thing.box for thing in scene.things], dtype=np.float32)
        features.append(eyes.see(render(scene, difficulty.noise), boxes_R4))
        labels += [(colours.index(t.colour), shapes.index(t.shape)) for t in scene.things]
    seen_ND = torch.from_numpy(np.concatenate(features))
    seen_ND = (seen_ND - seen_ND.mean(0)) / (seen_ND.std(0) + 1e-3)
    train, test = slice(0, -250), slice(-250, None)

    def accuracy(label_N, *layers):
        model = nn.Sequential(*layers)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=1e-4)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(seen_ND[train]), label_N[train]).backward()
            optimizer.step()
        return float((model(seen_ND[test]).argmax(1) == label_N[test]).float().mean())

    torch.manual_seed(0)
    colour_N, shape_N = torch.tensor(labels).unbind(1)
    assert accuracy(colour_N, nn.Linear(256, 6)) > 0.9  # of six
    assert accuracy(shape_N, nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 5)) > 0.6  # of five
