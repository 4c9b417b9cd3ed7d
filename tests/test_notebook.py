"""The example notebook is stored with its outputs, and its cells run."""

import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "examples/budgets.ipynb"


def cells():
    return [c for c in json.loads(PATH.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]


def test_it_is_small_and_keeps_what_jupyter_showed():
    assert PATH.stat().st_size < 200_000
    assert [cell["execution_count"] for cell in cells()] == [*range(1, len(cells()) + 1)]
    outputs = [output for cell in cells() for output in cell["outputs"]]
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert {"text/html", "image/png"} <= kinds
    assert all(output["output_type"] in ("execute_result", "display_data") for output in outputs)


@pytest.mark.slow
def test_its_cells_train_three_budgets(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for cell in cells():
        exec("".join(cell["source"]), names)
    results, dense = names["results"], names["dense"]
    assert list(results) == ["dense", "10%", "25%", "50%"]
    for name, (parameters, accuracy) in results.items():
        allowed = dense if name == "dense" else int(dense * int(name[:-1]) / 100)
        assert parameters <= allowed and accuracy > 80  # of ten seeds the worst has 95.6%
    assert names["figure"].axes[0].get_ylabel() == "test accuracy, %"
