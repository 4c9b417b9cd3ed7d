"""npas-eval draws what a network answers into the run's folder, where the task has pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from npas.reporting import picture_page, results
from npas.tasks import digits
from npas.tasks.base import Picture, Shown


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Let the digits have pictures; return the parts and counts that were asked for."""
    calls = []
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8), "#e0c080").save(image)

    def examples(self, model, split, count):
        calls.append((split, count))
        with torch.no_grad():
            answer = int(model.eval()(torch.zeros(1, 1, 8, 8)).argmax())
        return [Shown("which digit?", [Picture(image, f"a {answer}")])] * count

    monkeypatch.setattr(digits.Task, "examples", examples)
    return calls


def test_a_page_goes_to_the_runs_folder_beside_the_metrics(run, trained, asked):
    folder = Path(shutil.copytree(trained, "copy"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = run("npas-eval", f"run={folder}", "show=3", "format=json")
    assert answer.code == 0, answer.err
    assert asked == [("test", 3)]
    reported = results.read(trained).metrics
    assert reported is not None and json.loads(answer.out) == reported.last
    page = folder / "show-test.png"
    assert answer.err == f"npas-eval: {page} shows 3 samples\n"
    with Image.open(page) as opened:
        opened.load()
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before | {page: page.read_bytes()}  # nothing of the run has changed


@pytest.mark.usefixtures("asked")
def test_a_page_of_one_checkpoint_that_cannot_be_written_is_one_line_after_the_metrics(
    run, trained
):
    folder = Path(shutil.copytree(trained, "copy"))
    (folder / "show-test.png").mkdir()
    newest = max((folder / "checkpoints").glob("step-*"))
    answer = run("npas-eval", f"run={newest}", "show=1")
    assert answer.code == 2 and "accuracy" in answer.out
    (line,) = answer.err.splitlines()
    assert f"{folder}/show-test.png cannot be written (Is a directory)" in line
    assert not list(folder.glob("*.tmp"))


def test_a_task_without_pictures_is_refused_before_any_data_are_read(run, trained, monkeypatch):
    monkeypatch.setattr(digits.Task, "setup", lambda task: pytest.fail("the data were read"))
    answer = run("npas-eval", f"run={trained}", "show=1")
    assert (answer.code, answer.out) == (2, "")
    assert "has no pictures to show: leave show out" in answer.err


def test_phrases_are_shown_with_their_boxes(run, tmp_path):
    arguments = ("+exp=simnet_flickr30k", "budget=0.5", "model.width=8", "data.source=synthetic")
    made = (
        "data.synthetic.train=4",
        "data.synthetic.test=2",
        f"run_root={tmp_path}",
        "data.workers=0",
    )
    answer = run("npas-train", *arguments, *made, "trainer.device=cpu", "wandb.mode=disabled")
    assert answer.code == 0, answer.err
    (folder,) = tmp_path.glob("simnet_flickr30k/*")
    assert run("npas-eval", f"run={folder}", "split=val", "show=2").code == 0
    with Image.open(folder / "show-val.png") as page:
        drawn = np.array(page)[70:]  # below the title and what explains the colours
    assert (drawn == ImageColor.getrgb(picture_page.TRUTH)).all(2).sum() > 50


def test_texts_are_printed_or_part_of_the_json(run, tmp_path):
    small = ("model.layers=1", "model.width=8", "data.source=synthetic", "wandb.mode=disabled")
    words = ("+exp=shakespeare", *small, f"run_root={tmp_path}", "trainer.device=cpu")
    assert run("npas-train", *words).code == 0
    (folder,) = tmp_path.glob("shakespeare/*")
    assert run("npas-eval", f"run={folder}", "show=2").out.count("continues:") == 2
    found = json.loads(run("npas-eval", f"run={folder}", "show=2", "format=json").out)
    assert [len(texts) for texts in found["shown"]] == [2, 2] and "loss" in found
