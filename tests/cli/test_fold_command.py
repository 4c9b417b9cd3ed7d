"""npas-fold shows which layers of a run agree, folds them, and says what that costs."""

import json
from pathlib import Path

import pytest
from command_line import SMALL
from safetensors.torch import load_file

from npas.cli import experiments, fold, train
from npas.models import InputSpec, wrn
from npas.sharing.trained.folding import load_folded

SOFT = (
    "+exp=digits_swrn",
    *SMALL,
    "model.depth=22",
    "data.val_fraction=0.1",
    "sharing.recurrence_weight=30",
    "sharing.templates=layers",
    "epochs=3",
)


@pytest.fixture(scope="module")
def soft(tmp_path_factory):
    """Train a small network whose layers grow alike, once."""
    root = tmp_path_factory.mktemp("soft") / "runs"
    assert train.main([*SOFT, f"run_root={root}"]) == 0
    (folder,) = root.glob("digits_swrn/templates-layers_*")
    return folder


@pytest.mark.slow
def test_a_run_folds_into_loops_and_says_what_it_costs(run, soft):
    answer = run("npas-fold", f"run={soft}", "threshold=0.9", code=0)
    out = soft / "fold-0.9"
    record = json.loads((out / "fold.json").read_text())
    assert record["threshold"] == 0.9 and record["split"] == "test"
    assert record["layers"] < record["layers_before"] == 23
    assert record["parameters"] < record["parameters_before"]
    assert record["outputs_differ_by"] < 1e-5
    assert set(record["metrics"]) == {"before", "tied", "recalibrated", "folded"}
    assert record["metrics"]["folded"]["loss"] == pytest.approx(
        record["metrics"]["recalibrated"]["loss"], rel=1e-5
    )
    loops = [entry for entry in record["blocks"] if entry["times"] > 1]
    assert loops and all(entry["own"] > 0 for entry in loops)
    for text in (f"{record['layers']} after", "runs", "accuracy"):
        assert text in answer.out
    assert answer.out.endswith("fold-0.9: fold.json, folding.json, model.safetensors and plots\n")
    assert [entry["epoch"] for entry in record["history"]] == [0, 1, 2, 3]
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("fold.json", "folding.json", "model.safetensors"),
        *(f"{stem}.{kind}" for stem in ("lsm", "lsm_epochs", "folded") for kind in ("png", "svg")),
    }

    network = load_folded(out, wrn.build(wrn.Config(depth=22, width=0.5), InputSpec((1, 8, 8), 10)))
    task = experiments.restore(str(soft), {"trainer.device": "cpu"}).task
    task.setup()
    assert task.evaluate(network, "test") == record["metrics"]["folded"]
    stored = load_file(out / "model.safetensors")  # every weight once
    assert len(stored) == len(
        {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    )


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the pictures, which take most of the time."""
    monkeypatch.setattr(fold, "_draw", lambda *_: [])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_threshold_is_chosen_on_held_out_data(run, soft, monkeypatch):
    monkeypatch.setattr(fold, "CANDIDATES", (0.999, 0.9, 0.5))
    answer = run("npas-fold", f"run={soft}", "threshold=auto", "tolerance=5", "out=there", code=0)
    record = json.loads(Path("there/fold.json").read_text())
    tried = {entry["threshold"]: entry for entry in record["tried"]}
    assert list(tried) == list(fold.CANDIDATES)
    assert record["chosen_on"] == "val accuracy"
    chosen = tried[record["threshold"]]
    assert chosen["layers"] == record["layers"]
    unfolded = run("npas-eval", f"run={soft}", "split=val", "format=json", "device=cpu")
    least = json.loads(unfolded.out)["accuracy"] - 5
    good = [entry for entry in tried.values() if entry["accuracy"] >= least]
    assert chosen["layers"] == min(entry["layers"] for entry in good or [tried[0.999]])
    assert "chosen on val accuracy" in answer.out
    assert answer.out.endswith("there: fold.json, folding.json and model.safetensors\n")


@pytest.mark.slow
def test_folding_an_unsuitable_run_is_one_line(run, soft, trained):
    run("npas-train", *SMALL, "budget=dense", code=0)
    (dense,) = Path("runs").glob("digits/*")
    for arguments, says in (
        ((f"run={soft}", f"out={soft}/config.yaml"), "is a file"),
        ((f"run={soft}", f"out={soft}/checkpoints"), "would mix with the files of a run"),
        ((f"run={trained}",), "no layers of"),
        ((f"run={trained}", "threshold=auto"), "(data.val_fraction=0.0): give a threshold"),
        ((f"run={dense}",), "dense network"),
    ):
        run("npas-fold", *arguments, refused=says)
