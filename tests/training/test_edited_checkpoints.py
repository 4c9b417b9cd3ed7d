"""Checkpoints that were edited, with a manifest that vouches for them: one line, no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from npas.training import build, checkpoint
from npas.training.checkpoint import open_checkpoint
from npas.training.optim import build_optimizer
from npas.training.precision import Precision
from npas.training.state import TrainState, load_weights
from npas.utils.processes import Refused

Change = Callable[[dict[str, Any]], object]


def seal(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    manifest = {path.name: checkpoint._sha256(path) for path in checkpoint._files(folder)}
    checkpoint._write_json(folder / "manifest.json", manifest)


def progress(**values: Any) -> Change:
    return lambda state: state["progress"].update(values)


def best(**values: Any) -> Change:
    return lambda state: state["progress"]["best"].update(values)


STATES: dict[str, tuple[Change, str]] = {
    "step far ahead": (
        lambda s: (s.update(step=10**12), s["progress"].update(step=10**12, epoch=2 * 10**11)),
        "is of another step",
    ),
    "step ahead": (progress(step=10**12), "progress.step must be 5"),
    "epoch ahead": (progress(epoch=2), "progress has step 5 and epoch 2"),
    "epoch behind": (progress(epoch=-1), "no negative step"),
    "step of text": (progress(step="5"), "progress.step must be an integer"),
    "no step": (lambda s: s["progress"].pop("step"), "progress.step is missing"),
    "a field more": (progress(colour="red"), "progress.colour is not a field"),
    "progress of a list": (lambda s: s.update(progress=[]), "progress must be a JSON object"),
    "no progress": (lambda s: s.pop("progress"), "lacks 'progress'"),
    "logged": (progress(logged=-1), "no negative step"),
    "best ahead": (best(step=10), "progress.best must lie before step 5"),
    "best without its metric": (best(metrics={}), "progress.best.metrics lacks val/accuracy"),
    "best of text": (best(metrics={"val/accuracy": "99"}), "must be a number"),
    "history": (
        lambda s: s["progress"]["history"].update(epoch=[1, 2]),
        "progress.history must have a value for each epoch",
    ),
    "history ahead": (
        lambda s: s["progress"]["history"].update(epoch=[7]),
        "progress.history must have a value for each epoch",
    ),
    "config of a list": (lambda s: s.update(config=[]), "config must be a JSON object"),
    "no config": (lambda s: s.pop("config_hash"), "lacks 'config_hash'"),
    "another hash": (lambda s: s.update(config_hash="0"), "by its config_hash"),
    "ranks": (lambda s: s.update(ranks="1"), "ranks must be an integer"),
    "scaler": (lambda s: s.update(scaler={"scale": 1.0}), "scaler must have scale, growth_factor"),
    "no scaler": (lambda s: s.update(scaler=None), "scaler must have scale, growth_factor"),
    "scale": (lambda s: s["scaler"].update(scale=0.0), "scaler.scale must not be 0.0"),
}

Tensors = dict[str, Tensor]


def first(tensors: Tensors, change: Callable[[Tensor], Tensor]) -> None:
    tensors[min(tensors)] = change(tensors[min(tensors)])


TENSORS: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "a weight less": ("model", lambda t: t.pop(min(t)), "in model.safetensors"),
    "a weight more": ("model", lambda t: t.update(more=torch.ones(1)), "has 'more', which"),
    "a longer weight": ("model", lambda t: first(t, lambda x: x.repeat(2)), "and the run's"),
    "another dtype": ("model", lambda t: first(t, lambda x: x.to(torch.int8)), "torch.int8"),
    "no optimizer": ("optimizer", lambda t: t.clear(), "in optimizer.safetensors"),
    "another optimizer": (
        "optimizer",
        lambda t: first(t, lambda x: torch.ones(3, 3, 3)),
        "is [3, 3, 3]",
    ),
    "no averages": ("averaged", lambda t: t.clear(), "in averaged.safetensors"),
    "no random numbers": ("rng", lambda t: t.clear(), "there is no state of random numbers (cpu)"),
    "short random numbers": ("rng", lambda t: first(t, lambda x: x[:9]), "is [9]"),
    "no counts": ("meter", lambda t: t.pop("0/counts"), "there is no counts"),
    "odd counts": (
        "meter",
        lambda t: t.update({"0/counts": torch.tensor([9, 900])}),
        "has counted 900 steps",
    ),
    "odd sums": ("meter", lambda t: t.update({"0/sums/loss": torch.ones(2)}), "sums/loss is [2]"),
}


def test_an_edited_checkpoint_is_refused_in_one_line(run_small, small, tmp_path: Path) -> None:
    changes = {"epochs": 1, "precision": "fp16", "optim": {"ema_decay": 0.9, "milestones": []}}
    run_small("whole", **changes)
    config = small(**changes)
    experiment = build(config)
    experiment.task.setup()
    optimizer = build_optimizer(experiment.model, config.optim)
    precision = Precision(config.precision, experiment.process.device)

    def refusal(case: str) -> str:
        try:
            TrainState(experiment, optimizer, precision, tmp_path / case).resume()
        except Refused as error:
            return str(error)
        return "nothing"

    whole = tmp_path / "whole" / "checkpoints" / "step-00000005"
    assert refusal("whole") == "nothing"
    for case, (change, says) in STATES.items():
        folder = tmp_path / case / "checkpoints" / whole.name
        shutil.copytree(whole, folder)
        state = json.loads((folder / "state.json").read_text())
        change(state)
        checkpoint._write_json(folder / "state.json", state)
        seal(folder)
        if says.startswith(("is of another", "progress must be", "config must", "ranks must")):
            with pytest.raises(ValueError, match=says):  # as damaged: there may be one before
                open_checkpoint(folder)
        else:
            line = refusal(case)
            assert says in line and "\n" not in line, (case, line)
    for case, (name, edit, says) in TENSORS.items():
        folder = tmp_path / case / "checkpoints" / whole.name
        shutil.copytree(whole, folder)
        tensors = load_file(folder / f"{name}.safetensors")
        edit(tensors)
        save_file(tensors, folder / f"{name}.safetensors")
        seal(folder)
        line = refusal(case)
        assert says in line and "\n" not in line, (case, line)
        if name in ("model", "averaged"):
            with pytest.raises(ValueError, match="does not fit"):
                load_weights(experiment.model, open_checkpoint(folder))


def test_a_far_step_is_refused_before_anything_is_trained(run_small, small, tmp_path: Path) -> None:
    _, outcome = run_small("run")
    last = tmp_path / "run" / "checkpoints" / f"step-{outcome.steps:08d}"
    far = last.with_name("step-1000000000000")
    last.rename(far)
    state = json.loads((far / "state.json").read_text())
    state["step"] = state["progress"]["step"] = 10**12
    state["progress"]["epoch"] = 2 * 10**11
    checkpoint._write_json(far / "state.json", state)
    seal(far)
    with pytest.raises(
        Refused, match="has step 1000000000000 and epoch 200000000000, in a training"
    ):
        run_small("run")


@pytest.mark.parametrize("name", ["../model.safetensors", "/dev/null", "", "a b"])
def test_a_manifest_names_files_of_its_own_folder_alone(tmp_path: Path, name: str) -> None:
    folder = checkpoint.Checkpoints(tmp_path).save(1, {}, {})
    manifest = json.loads((folder / "manifest.json").read_text())
    checkpoint._write_json(folder / "manifest.json", manifest | {name: "0"})
    with pytest.raises(ValueError, match="no file of a checkpoint"):
        open_checkpoint(folder)


def test_a_file_that_the_manifest_does_not_name_is_not_trusted(tmp_path: Path) -> None:
    folder = checkpoint.Checkpoints(tmp_path).save(1, {}, {"model": {"w": torch.ones(1)}})
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["model.safetensors"]
    checkpoint._write_json(folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        open_checkpoint(folder)
