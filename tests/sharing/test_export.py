"""torch.export and ONNX of the materialized and of the shared network."""

import pytest
import torch
from tiny import INPUTS, mlp, outputs, shared

import npas

ROWS = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("materialized", [True, False])
def test_torch_export_answers_alike(materialized):
    model = mlp().eval()
    if materialized:
        npas.materialize(model)
    program = torch.export.export(model, (ROWS,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(ROWS), model(ROWS))
    assert set(program.state_dict) == set(model.state_dict())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("materialized", [True, False])
def test_onnx_answers_alike(tmp_path, materialized):
    """ONNX takes the shared network as well: smaller by its budget, slower by the mixing."""
    import onnxruntime

    model = shared(0.2).eval()
    if materialized:
        npas.materialize(model)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (INPUTS,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (answer,) = session.run(None, {session.get_inputs()[0].name: INPUTS.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), outputs(model), rtol=1e-4, atol=1e-5)
