"""The script stores the detector's own proposals and features, each image once."""

import urllib.error
from pathlib import Path

import extract_regions as script
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models import detection

from npas.tasks.grounding import reading
from npas.tasks.grounding.regions import Regions
from npas.tasks.scenes.world import Difficulty
from npas.tasks.scenes.writing import write_flickr30k
from npas.utils import files

WORDS = ("flickr30k", "--weights=none", "--size=64", "--most=6", "--splits=test")
FOLDER = Path("data/flickr30k_entities")
TARGET = FOLDER / "test_features.h5"
IDS = ["3000000000", "3000000001", "3000000002"]


@pytest.fixture(scope="module")
def detector():
    """Build the network once, which takes longest."""
    return script.build(script.parse(WORDS)).eval()


@pytest.fixture(autouse=True)
def images():
    """Put three test images there, and no features."""
    Path("data").mkdir()
    write_flickr30k(Path("data"), Difficulty(), {"train": 1, "val": 1, "test": 3}, 4, 0)
    for path in FOLDER.glob("*.h5"):
        path.unlink()


@pytest.fixture
def extract(detector, monkeypatch):
    """Return a function that runs the script with the network that is there."""
    monkeypatch.setattr(script, "build", lambda _: detector)
    return lambda *words: script.main([*WORDS, *words])


@pytest.fixture
def quickly(extract, monkeypatch):
    """Return the like, that describes an image by its mean colour."""
    monkeypatch.setattr(
        script.Extractor, "_rows", lambda self, pixels_CHW: pixels_CHW.mean((1, 2))[None]
    )
    return extract


def stored(path=TARGET):
    with h5py.File(path, "r") as file:
        return {name: file[name][()] for name in file}


def image_path(name):
    return FOLDER / "flickr30k-images" / f"{name}.jpg"


def pixels(name):
    with Image.open(image_path(name)) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def seen(detector, name):
    """Run the whole detector on an image, as torchvision does; keep what its parts are given."""
    kept = {}
    parts = detector
    hooks = [
        parts.rpn.register_forward_hook(lambda _, given, out: kept.update(proposals=out[0][0])),
        parts.roi_heads.box_head.register_forward_hook(lambda _, given, out: kept.update(head=out)),
        parts.backbone.body.register_forward_hook(
            lambda _, given, out: kept.update(input=given[0], stage=list(out.values())[-1])
        ),
    ]
    with torch.no_grad():
        detector([pixels(name)])
    for hook in hooks:
        hook.remove()
    return kept


def pooled(stage_1CHW, box, scale):
    """Average a feature map over a box, at the points of a RoIAlign of 7x7 cells of 2x2."""
    left, top, right, bottom = (box * scale - 0.5).tolist()
    height, width = stage_1CHW.shape[2:]
    steps = (torch.arange(14) + 0.5) / 14
    x_N, y_N = left + steps * (right - left), top + steps * (bottom - top)
    grid = torch.stack(torch.meshgrid(x_N, y_N, indexing="xy"), 2)
    grid = grid / torch.tensor([width - 1, height - 1]) * 2 - 1
    found = F.grid_sample(stage_1CHW, grid[None], padding_mode="border", align_corners=True)
    return found.mean((2, 3))[0]


@pytest.mark.slow
def test_rows_are_the_detectors_proposals_and_features_and_the_task_reads_them(extract, detector):
    assert extract() == 0
    listed = reading.read("flickr30k", Path("data"))["test"].images
    regions = Regions(TARGET, listed, 2048)
    for i, (name, rows) in enumerate(stored().items()):
        kept = seen(detector, name)
        padded, (_, height, width) = kept["input"], pixels(name).shape
        assert (height, width) == (96, 128)
        assert rows.shape == (len(kept["proposals"]), 2048 + 5 + 4) and len(rows) <= 6
        scale = torch.tensor([width / 85, height / 64] * 2)  # 64 pixels on the shorter side
        expected = kept["proposals"] * scale
        expected[:, 2:] -= 1  # the last pixel that belongs to the box
        np.testing.assert_allclose(rows[:, -4:], expected.numpy(), rtol=1e-4, atol=1e-3)
        for row, proposal in zip(rows, kept["proposals"], strict=True):
            feature = pooled(kept["stage"], proposal, kept["stage"].shape[3] / padded.shape[3])
            np.testing.assert_allclose(row[:2048], feature.numpy(), rtol=1e-3, atol=1e-4)
        features, boxes = regions.read(i, 300)
        np.testing.assert_array_equal(features, rows[:, :2048])
        np.testing.assert_array_equal(boxes, rows[:, -4:])
        left, top, right, bottom = boxes.T
        np.testing.assert_allclose(rows[:, 2048:2052], boxes / [128, 96, 128, 96], rtol=1e-5)
        area = (right - left + 1) * (bottom - top + 1) / (128 * 96)
        np.testing.assert_allclose(rows[:, 2052], area, rtol=1e-4)
    TARGET.unlink()
    assert extract("--features=head") == 0
    for name, rows in stored().items():
        assert rows.shape[1] == 1024 + 5 + 4
        head = seen(detector, name)["head"].numpy()
        np.testing.assert_allclose(rows[:, :1024], head, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_alike(quickly, monkeypatch, capsys):
    assert quickly() == 0
    whole = stored()
    TARGET.unlink()
    calls, describe = [], script.Extractor.__call__

    def interrupted(self, pixels_CHW):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return describe(self, pixels_CHW)

    monkeypatch.setattr(script.Extractor, "__call__", interrupted)
    assert quickly() == 130
    assert "interrupted; run the same command to continue" in capsys.readouterr().err
    assert not TARGET.exists()
    assert quickly() == 0
    assert len(calls) == 4  # two were kept
    after = stored()
    assert list(after) == IDS and all(np.array_equal(after[i], whole[i]) for i in IDS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "is not there: left out"),
        (b"nothing", "cannot be read (cannot identify"),
        (slice(900), "cannot be read (image file is truncated"),
        ("another", "is 50x40 and annotated as 128x96: left out"),
    ],
)
def test_a_bad_image_is_named_and_added_once_it_is_mended(quickly, capsys, data, message):
    path = image_path(IDS[1])
    good = path.read_bytes()
    path.unlink()
    if data == "another":
        Image.new("RGB", (50, 40)).save(path)
    elif data is not None:
        path.write_bytes(good[data] if isinstance(data, slice) else data)
    assert quickly() == 1
    first, last = capsys.readouterr().err.splitlines()
    assert str(path) in first and message in first
    assert "1 images left out: fix them, and the same command adds them; tasks do without" in last
    before = stored()
    assert list(before) == [IDS[0], IDS[2]]
    path.write_bytes(good)
    assert quickly() == 0
    after = stored()
    assert list(after) == IDS and all(np.array_equal(after[i], before[i]) for i in before)


def tiny():
    """Return a network of a few weights under names that a detector has."""
    scores, norm = nn.ModuleDict({"cls_score": nn.Linear(2, 91)}), nn.BatchNorm2d(3)
    heads = nn.ModuleDict({"box_predictor": scores})
    return nn.ModuleDict({"roi_heads": heads, "backbone": norm, "rpn": nn.Linear(2, 3)})


@pytest.fixture
def made(monkeypatch):
    """Let torchvision make a tiny network; return with what settings it was asked to."""
    asked = []

    def make(**settings):
        if settings["weights"] is not None:
            raise urllib.error.URLError("no network")
        asked.append(settings)
        return tiny()

    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn_v2", make)
    return asked


def test_weights_are_read_from_a_file_and_invalid_input_is_one_line(made, capsys):
    state = tiny().state_dict()
    del state["backbone.num_batches_tracked"]  # as where norms were frozen
    torch.save(state, "weights.pth")
    loaded = script.build(script.parse([*WORDS, "--weights=weights.pth"])).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert made[0]["num_classes"] == 91 and made[0]["weights_backbone"] is None
    assert (made[0]["rpn_post_nms_top_n_test"], made[0]["rpn_nms_thresh"]) == (6, 0.7)
    state, shape = tiny().state_dict(), {"rpn.weight": torch.zeros(1)}
    torch.save({**state, "rpn.other": torch.zeros(1)}, "extra.pth")
    torch.save({**state, **shape}, "shape.pth")
    del state["rpn.weight"]
    torch.save(state, "lacking.pth")
    Path("text.pth").write_text("nothing")
    for word, message in (
        ("--weights=lacking.pth", "is of another network than fasterrcnn_resnet50_fpn_v2: it has"),
        ("--weights=extra.pth", "it has a rpn.other; name its own as --network"),
        ("--weights=shape.pth", "is no state dict of fasterrcnn_resnet50_fpn_v2 (Error(s) in"),
        ("--weights=text.pth", "is no state dict"),
        ("--weights=nowhere.pth", "--weights nowhere.pth: there is no such file"),
        ("--weights=DEFAULT", "--weights DEFAULT cannot be downloaded"),
        ("--splits=test,dev", "--splits test,dev: write some of train,val,test"),
        ("--device=abacus", "--device abacus: there is none that torch can use"),
        ("--root=nowhere", "flickr30k is not at nowhere"),
    ):
        assert script.main([*WORDS, word]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("extract_regions.py: ") and message in line, line


def test_what_the_store_refuses_ends_the_script_and_one_process_writes_at_a_time(quickly, capsys):
    assert quickly() == 0 and quickly("--most=5") == 2
    assert "was made with other settings" in capsys.readouterr().err
    with files.locked(TARGET.with_name(f".{TARGET.name}.lock")):
        assert quickly() == 2
    assert "is being written by another process" in capsys.readouterr().err
    (FOLDER / "flickr30k-images").rename(FOLDER / "elsewhere")
    assert quickly() == 2
    assert "flickr30k-images: put the images there" in capsys.readouterr().err
