"""A pruned run at the command line, from its plan to the smaller network that is exported."""

import json
from pathlib import Path

import pytest
import torch
from command_line import SMALL
from safetensors.torch import load_file

import npas
from npas import models
from npas.cli import experiments
from npas.reporting import results

PRUNED = (*SMALL, "pruning=hrank", "pruning.amount=0.5", "pruning.batches=1")


@pytest.mark.parametrize("budget", ["0.5", "dense"])
@pytest.mark.slow
def test_a_run_ends_with_what_was_planned_and_its_export_is_that_network(run, budget):
    overrides = (*PRUNED, f"budget={budget}", "artifact.export=true")
    planned = json.loads(run("npas-plan", *overrides, "format=json").out)
    kept = f"28 of 56 filters kept: {planned['pruning']['exported']:,} parameters"
    assert kept in run("npas-plan", *overrides).out
    assert "pruning  28 of 56 filters kept" in run("npas-train", *overrides, code=0).out
    (folder,) = Path("runs/digits").iterdir()
    result = results.read(folder)
    assert json.loads((folder / "result.json").read_text())["pruning"] == planned["pruning"]
    most = planned["artifact"]["bytes_before_compression"]
    assert result.artifact.bytes_before_compression <= most
    assert planned["pruning"]["flops"] < planned["flops"]
    answer = run("npas-export", f"run={folder}")
    size = "{exported:,} parameters and {flops:,} FLOPs per input, pruned"
    assert answer.out.strip().endswith(size.format(**planned["pruning"]))
    state = load_file(folder / "export" / "model.safetensors")
    assert not any("kept" in name or "npas" in name for name in state)

    experiment = experiments.restore(str(folder), {"trainer.device": "cpu"})
    config, spec = experiment.config.model, experiment.task.spec
    network = npas.sharing.resize(models.build(config, spec), state)
    assert npas.count_parameters(network) == planned["pruning"]["exported"]
    images = torch.randn(8, *spec.input_shape)
    expected = experiment.model.eval()(images)
    torch.testing.assert_close(network.eval()(images), expected, rtol=1e-5, atol=1e-5)
    evaluated = json.loads(run("npas-eval", f"run={folder}", "format=json").out)
    assert evaluated == result.metrics.last
    artifact = f"artifact={folder / 'artifact.npas'}"
    run("npas-eval", f"run={folder}", artifact, code=0)
    answer = run("npas-fold", f"run={folder}")
    assert answer.code == 2 and ("prunes filters" in answer.err or budget == "dense")
