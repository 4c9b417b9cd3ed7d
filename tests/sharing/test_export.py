"""What leaves for other runtimes: the materialized network as any dense one, the shared one too."""

from pathlib import Path

import pytest
import torch
from tiny import INPUTS, bank, mlp, outputs, shared
from torch import nn

import npas

ROWS = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("materialized", [True, False])
def test_torch_export_answers_alike(materialized: bool) -> None:
    model = mlp().eval()
    if materialized:
        npas.materialize(model)
    program = torch.export.export(model, (ROWS,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(ROWS), model(ROWS))
    assert set(program.state_dict) == set(model.state_dict())


def test_an_exported_shared_network_trains_its_bank() -> None:
    module = torch.export.export(mlp(), (ROWS,)).module()
    module(ROWS).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert bool(bank(module).grad.any())  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["fixed", "dynamic"])
def test_programs_are_saved_and_take_other_batch_sizes(tmp_path: Path, batch: str) -> None:
    model = npas.materialize(shared()).eval()
    shapes = {"x": {0: torch.export.Dim("batch")}} if batch == "dynamic" else None
    program = torch.export.export(model, (INPUTS,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    rows = slice(None) if batch == "fixed" else slice(0, 3)
    with torch.no_grad():
        torch.testing.assert_close(loaded(INPUTS[rows]), model(INPUTS[rows]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("materialized", [True, False])
def test_onnx_answers_alike(tmp_path: Path, materialized: bool) -> None:
    """ONNX takes the shared network as well: smaller by its budget, slower by the mixing."""
    import onnxruntime

    model: nn.Module = shared(0.2).eval()
    if materialized:
        npas.materialize(model)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (INPUTS,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (answer,) = session.run(None, {session.get_inputs()[0].name: INPUTS.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), outputs(model), rtol=1e-4, atol=1e-5)
