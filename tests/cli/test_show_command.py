"""npas-eval shows samples with a network's outputs, on a page in the run's folder or as texts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from npas.reporting import results
from npas.tasks import classification, digits
from npas.tasks.base import Picture, Shown


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Replace the samples of the digits; return the parts and counts that were asked for."""
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
    answer = run("npas-eval", f"run={folder}", "show=3", "format=json", code=0)
    assert asked == [("test", 3)]
    assert json.loads(answer.out) == results.read(trained).metrics.last
    page = folder / "show-test.png"
    assert answer.err == f"npas-eval: {page} shows 3 samples\n"
    with Image.open(page) as opened:
        opened.load()
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before | {page: page.read_bytes()}  # nothing of the run has changed
    artifact = folder / "small.npas"
    run("npas-export", f"run={folder}", "format=artifact", f"out={artifact}", code=0)
    answer = run("npas-eval", f"run={folder}", "show=3", f"artifact={artifact}")
    assert answer.err == f"npas-eval: {folder / 'artifact/show-test.png'} shows 3 samples\n"
    assert page.read_bytes() == after[page]  # of the run itself


def test_a_task_without_samples_is_refused_before_any_data_are_read(run, trained, monkeypatch):
    monkeypatch.delattr(classification.Classification, "examples")
    monkeypatch.setattr(digits.Task, "setup", lambda task: pytest.fail("the data were read"))
    answer = run("npas-eval", f"run={trained}", "show=1")
    assert (answer.code, answer.out) == (2, "")
    assert "has no samples to show: leave show out" in answer.err


def test_texts_are_printed_or_part_of_the_json(run, tmp_path):
    small = ("model.layers=1", "model.width=8", "data.source=synthetic", "wandb.mode=disabled")
    overrides = ("+exp=shakespeare", *small, f"run_root={tmp_path}", "trainer.device=cpu")
    run("npas-train", *overrides, code=0)
    (folder,) = tmp_path.glob("shakespeare/*")
    assert run("npas-eval", f"run={folder}", "show=2").out.count("\n--- ") == 2
    found = json.loads(run("npas-eval", f"run={folder}", "show=2", "format=json").out)
    assert [len(texts) for texts in found["shown"]] == [2, 2] and "loss" in found
