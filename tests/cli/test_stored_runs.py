"""npas-eval and npas-export bring a stored run back as it was."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from command_line import SMALL
from safetensors import safe_open
from safetensors.torch import load_file

from npas.cli import experiments, train
from npas.models import InputSpec, bert, family
from npas.reporting import results
from npas.tasks import digits


def test_an_evaluation_finds_what_the_run_reported(run, trained):
    reported = results.read(trained).metrics
    table = run("npas-eval", f"run={trained}").out
    assert f"accuracy {reported.last['accuracy']:.4f}" in table and "unfinished" not in table
    run("npas-eval", f"run={trained}", "split=val", refused="held no data out")
    answer = run("npas-eval", f"run={trained}", "format=json", "device=cpu")
    assert answer.code == 0 and json.loads(answer.out) == reported.last


@pytest.mark.parametrize(("arch", "budget"), [("bert", "dense"), ("albert", "0.6")])
def test_a_fine_tuned_network_needs_no_pretrained_one_again(run, tmp_path, arch, budget):
    """Nor does what the folder's own config said get lost: here, of its activation."""
    shape = {"layers": 1, "hidden": 8, "heads": 2, "intermediate": 16}
    embedding = 4 if arch == "albert" else None
    config = bert.Config(arch=arch, vocab_size=1024, positions=128, embedding=embedding, **shape)
    network = bert.build(config, InputSpec((128,), 0, "pretraining"))
    network.config.hidden_act = "relu"
    network.save_pretrained(tmp_path / "published")
    answer = run(
        "npas-train",
        "+exp=tiny_squad",
        f"model.arch={arch}",
        f"model.embedding={'null' if embedding is None else embedding}",
        *(f"model.{key}={value}" for key, value in shape.items()),
        f"model.pretrained={tmp_path / 'published'}",
        f"budget={budget}",
        "data.synthetic={train: 8, test: 4, epochs: 1, batch_size: 4}",
        "wandb.mode=disabled",
        "trainer.device=cpu",
        f"run_root={tmp_path}",
    )
    assert answer.code == 0, answer.err
    (folder,) = tmp_path.glob("tiny_squad/*")
    shutil.rmtree(tmp_path / "published")
    answer = run("npas-eval", f"run={folder}", "format=json", "device=cpu", code=0)
    assert json.loads(answer.out) == results.read(folder).metrics.last
    restored = experiments.restore(str(folder), {"trainer.device": "cpu"}).model
    assert restored.config.hidden_act == "relu"
    run("npas-export", f"run={folder}", code=0)


def test_an_export_is_the_plain_network_with_the_same_outputs(run, trained):
    folder = Path(shutil.copytree(trained, "copy"))
    answer = run("npas-export", f"run={folder}", code=0)
    out = folder / "export" / "model.safetensors"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert answer.out == f"{out}: a dense network of 20,506 parameters\n"

    wrn = family("wrn")
    with safe_open(out, "pt") as file:
        assert "unfinished" not in file.metadata()
        config = wrn.Config(**json.loads(file.metadata()["model"]))
    dense = wrn.build(config, InputSpec((1, 8, 8), 10))
    dense.load_state_dict(load_file(out))
    shared = experiments.restore(str(trained), {"trainer.device": "cpu"}).model
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(dense.eval()(x), shared.eval()(x))


@pytest.mark.slow
def test_an_onnx_export_has_the_same_outputs_for_any_batch(run, trained):
    import onnxruntime

    answer = run("npas-export", f"run={trained}", "format=onnx", "out=net.onnx")
    assert answer.code == 0 and not answer.err, answer.err
    shared = experiments.restore(str(trained), {"trainer.device": "cpu"}).model.eval()
    session = onnxruntime.InferenceSession("net.onnx")
    for batch in (1, 3):
        x = torch.randn(batch, 1, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), shared(x), rtol=1e-4, atol=1e-5)


def test_an_export_goes_where_it_is_told_whole_or_not_at_all(run, trained, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = ("npas-export", f"run={trained}", "out=deep/net.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        answer = run(*arguments)
    assert answer.code == 2 and not list(Path("deep").iterdir())
    line = "cannot be written (No space left on device): name another as out="
    assert answer.err == f"npas-export: deep/net.safetensors {line}\n"
    run(*arguments, code=0)
    assert [path.name for path in Path("deep").iterdir()] == ["net.safetensors"]
    Path("usual").touch()
    assert Path("deep/net.safetensors").stat().st_mode == Path("usual").stat().st_mode


def test_what_is_made_of_a_checkpoint_goes_into_its_runs_folder(run, trained):
    folder = Path(shutil.copytree(trained, "copy"))
    (step,) = (folder / "checkpoints").iterdir()
    for named, format, out in (
        (step, "artifact", "artifact.npas"),
        (step, "safetensors", "model.safetensors"),
        (step.parent, "hub", "hub"),
    ):
        before = {path for path in step.parent.rglob("*")}
        answer = run("npas-export", f"run={named}", f"format={format}")
        assert answer.code == 0 and answer.out.startswith(f"{folder / 'export' / out}: ")
        assert before == {path for path in step.parent.rglob("*")}


def test_no_output_replaces_a_runs_files_or_a_file_of_another_kind(run, trained):
    folder, script = Path(trained), Path("train.sh")
    script.write_text("#!/bin/sh\n")
    (step,) = (folder / "checkpoints").iterdir()
    before = {path: path.read_bytes() for path in [*folder.rglob("*.*"), script] if path.is_file()}
    for command, format, out, line in (
        ("npas-export", "artifact", step / "model.safetensors", "exists and is not a .npas file"),
        ("npas-export", "safetensors", step / "model.safetensors", "would mix with the files of"),
        ("npas-export", "safetensors", step / "new.safetensors", "would mix with the files of"),
        ("npas-export", "safetensors", folder / "result.json", "exists and is not a .safetensors"),
        ("npas-export", "onnx", script, "exists and is not a .onnx file"),
        ("npas-export", "hub", folder, "would mix with the files of a run"),
        ("npas-report", None, folder / "config.yaml", "exists and is not a .html file"),
    ):
        named = [f"run={folder}", f"format={format}"] if format else [f"runs={folder.parents[1]}"]
        run(command, *named, f"out={out}", refused=line)
    assert before == {path: path.read_bytes() for path in before}
    run("npas-export", f"run={folder}", "out=checkpoints/net.safetensors", code=0)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Stop a run of three epochs after its eighth step, in the second; return its folder."""
    root, steps, loss = tmp_path_factory.mktemp("stopped") / "runs", count(1), digits.Task.loss

    def stopping(self, model, batch):
        if next(steps) == 8:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss(self, model, batch)

    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits.Task, "loss", stopping)
        assert train.main([*SMALL, "budget=0.5", "epochs=3", f"run_root={root}"]) == 75
    signal.signal(signal.SIGUSR1, before)
    (folder,) = root.glob("digits/*")
    yield folder


@pytest.mark.slow
def test_what_is_made_of_an_unfinished_run_says_so(run, stopped):
    folder = Path(shutil.copytree(stopped, "copy"))
    result = results.read(folder)
    for status in ("preempted", "failed", "diverged", None):  # None: it was killed
        (folder / "result.json").unlink()
        line = "unfinished: weights after step 8, 1 of 3 epochs done"
        if status is not None:
            line += f"; the run's status is {status}"
            metrics = results.Metrics({"accuracy": None}) if status == "diverged" else None
            divergence = results.Divergence(9, {}) if status == "diverged" else None
            changed = replace(result, status=status, metrics=metrics, divergence=divergence)
            results.write(folder, changed)
        out = run("npas-eval", f"run={folder}").out.splitlines()
        assert out[0] == line and len(out) > 1
    assert json.loads(run("npas-eval", f"run={folder}", "format=json").out)["unfinished"] == line
    assert run("npas-export", f"run={folder}", "out=net.safetensors").out.splitlines()[-1] == line
    with safe_open("net.safetensors", "pt") as file:
        assert file.metadata()["unfinished"] == line
