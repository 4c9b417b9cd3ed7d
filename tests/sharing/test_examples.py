"""The examples of training elsewhere run as they are, and learn; a callback checks the budget."""

import importlib
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import npas

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("train_*.py"))


@pytest.fixture
def example(tmp_path, monkeypatch, request):
    """Import an example, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what their libraries say when they are imported
        yield importlib.import_module(request.param)
    for name in set(sys.modules) - before:
        if name in SCRIPTS:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("example", "keys"),
    [
        ("train_loop", {}),
        ("train_accelerate", {}),
        ("train_fabric", {"accelerator": "cpu"}),
        ("train_trainer", {"use_cpu": True, "disable_tqdm": True}),
    ],
    indirect=["example"],
)
def test_an_example_shares_trains_and_saves(example, keys, capsys):
    found = example.main(epochs=2, **keys)
    assert "allowed" in capsys.readouterr().out  # the allocation
    assert found > 50  # of four seeds of the loop the worst has 80
    assert Path("shared-digits/allocation.json").exists()


def test_the_examples_are_short_and_all_are_run():
    assert SCRIPTS == ["train_accelerate", "train_fabric", "train_loop", "train_trainer"]
    for name in SCRIPTS:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60, name


def begin(model, optimizer=None):
    state = SimpleNamespace(is_world_process_zero=True)
    npas.BudgetCallback().on_train_begin(None, state, None, model=model, optimizer=optimizer)


def test_the_callback_prints_the_allocation_and_refuses_what_is_over_its_budget(capsys):
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="network is not shared"):
        begin(model)
    npas.share(model, 0.5, generator="wavg")
    begin(nn.ModuleDict({"module": model})["module"], torch.optim.SGD(npas.param_groups(model, 1)))
    assert npas.summary(model) in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"decays npas_.* give the Trainer optimizers="):
        begin(model, torch.optim.SGD(model.parameters(), weight_decay=0.1))
    with pytest.warns(UserWarning, match=r"the optimizer lacks npas_bank_0 \(\d+ in all\)"):
        begin(model, torch.optim.SGD([model[0].bias]))  # type: ignore[list-item]
    model.extra = nn.Linear(50, 50)
    with pytest.raises(ValueError, match=r"budget 0\.5 allows [\d,]+: something was added after"):
        begin(model)


def test_budgets_are_plotted_from_the_list_of_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    plot = importlib.import_module("plot_budgets")
    head = "exp,budget,seed,status,metric,value,used,seconds,folder\n"
    rows = [f"digits,{b},{s},done,accuracy,{90 + s},{b}0,1,x\n" for b in (1, 2) for s in (0, 1)]
    plot.main([head, *rows, "digits,3,0,failed,,,,,x\n"], str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="no run is done"):
        plot.main([head], str(tmp_path / "b.png"))
