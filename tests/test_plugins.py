"""Models, tasks and YAMLs come from other packages and from scripts as they do from npas."""

import json
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import npas
from npas import models, tasks
from npas.cli import evaluate, plan, train
from npas.models import InputSpec
from npas.reporting import results
from npas.sharing.generators import schemes
from npas.tasks.digits import Config as Digits
from npas.tasks.digits import Task
from npas.utils import plugins

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/npas_mlp"
ENTRIES = {
    "npas.models": {"mlp": "npas_mlp.mlp"},
    "npas.schemes": {"rolled": "npas_mlp.rolled"},
    "npas.configs": {"mlp": "npas_mlp.configs"},
}


def install(folder, entries, name="npas_mlp"):
    """Write what an installer writes of a package's entry points."""
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in own.items())
        for group, own in entries.items()
    )
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the example for a test; return the folder of its packages."""
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE / "npas_mlp", site / "npas_mlp")
    install(site, ENTRIES)
    monkeypatch.syspath_prepend(site)
    return site


def test_a_package_brings_a_network_and_its_experiment(installed, tmp_path, capsys):
    overrides = ["+exp=mlp_digits", "budget=0.2", "model.width=32", "epochs=1"]
    assert train.main(overrides) == 0
    (folder,) = (tmp_path / "runs/mlp_digits").iterdir()
    found = results.read(folder)
    assert found.status == "done" and found.config["model"] == {
        "family": "mlp", "width": 32, "layers": 4
    }  # fmt: skip
    assert train.main(overrides) == 0 and "skipped" in capsys.readouterr().out
    assert evaluate.main([f"run={folder}"]) == 0
    capsys.readouterr()
    assert plan.main(["model=mlp", "model.layers=1", "budget=dense", "format=json"]) == 0
    dense = 64 * 256 + 256 + 2570
    assert json.loads(capsys.readouterr().out)["budget"]["dense"] == dense
    for word, line in (
        ("model.widht=3", "did you mean 'model.width'"),
        ("model.width=0", "must be at least 1"),
        ("model=mpl", "did you mean 'mlp'"),
    ):
        assert plan.main(["model=mlp", word]) == 2
        message = capsys.readouterr().err
        assert line in message and message.count("\n") == 1


@pytest.mark.slow
def test_a_package_brings_a_way_to_share(installed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(schemes, "_found", {})
    overrides = ["+exp=rolled_digits", "budget=0.2", "wandb.mode=disabled", "model.width=32"]
    assert train.main([*overrides, "epochs=1"]) == 0
    (folder,) = (tmp_path / "runs/rolled_digits").iterdir()
    found = results.read(folder)
    assert found.status == "done" and found.budget.used == found.budget.allowed
    assert found.config["sharing"]["generator"] == "rolled"
    capsys.readouterr()
    assert train.main([*overrides, "epochs=1"]) == 0 and "skipped" in capsys.readouterr().out
    assert evaluate.main([f"run={folder}"]) == 0
    assert plan.main(overrides) == 0
    assert " rolled" in capsys.readouterr().out
    learned = ["sharing.groups=learned", "sharing.num_groups=2"]
    for wrong, line in (
        (["sharing.generator=roled"], "there is no 'roled'; did you mean rolled?"),
        (["sharing.upsample_templates=2"], "upsample_templates"),
        (learned, "not with sharing.generator=rolled: choose wavg or emb"),
    ):
        assert plan.main([*overrides, *wrong]) == 2
        message = capsys.readouterr().err
        assert line in message and message.count("\n") == 1
    (next(installed.glob("*.dist-info")) / "entry_points.txt").write_text(
        "[npas.models]\nmlp = npas_mlp.mlp\n"
    )
    monkeypatch.setattr(schemes, "_found", {})
    plugins._found.cache_clear()
    assert evaluate.main([f"run={folder}"]) == 2
    message = capsys.readouterr().err
    assert "there is no 'rolled'" in message and "install its package" in message


def test_a_script_registers_families(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {kind: {} for kind in plugins.OFFERS})
    own = SimpleNamespace(
        Config=lambda **keys: SimpleNamespace(family="own", **keys),
        build=lambda config, spec: nn.Linear(3, spec.num_classes),
    )
    npas.register_model("own", own)
    network = models.build(own.Config(), InputSpec((3,), 7))
    assert network(torch.zeros(1, 3)).shape == (1, 7)
    npas.register_task("mine", SimpleNamespace(Config=Digits, Task=Task))
    assert tasks.family("mine").Task is Task
    with pytest.raises(ValueError, match="lacks build"):
        npas.register_model("half", SimpleNamespace(Config=int))
    with pytest.raises(ValueError, match="'wrn' is a model of npas itself"):
        npas.register_model("wrn", own)
    with pytest.raises(ValueError, match="lacks Config and Task"):
        npas.register_task("none", ModuleType("none"))


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"npas.models": {"bad": "nowhere.at_all"}}, "npas.models: nowhere.at_all cannot be"),
        ({"npas.models": {"bad": "json"}}, "lacks Config and build"),
    ],
)
def test_a_package_that_cannot_be_read_is_one_line(installed, entries, line):
    install(installed, entries, "bad")
    with pytest.raises(ValueError) as refused:
        models.family("bad")
    assert line in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"there is no model family 'worse'.*mlp"):
        models.family("worse")
