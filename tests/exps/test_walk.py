"""Every experiment trains on synthetic data as a user would start it, and plans exactly."""

import gc
import warnings
from pathlib import Path

import npas.configs
import pytest
import torch

from npas import models, sharing, tasks
from npas.cli import plan, train
from npas.config import DENSE, search_epochs
from npas.reporting import definitions, results
from npas.reporting.compose import compose, planned_count, planned_flops
from npas.training.experiment import plan_keywords

pytestmark = pytest.mark.walk

EXPERIMENTS = sorted(path.stem for path in (Path(npas.configs.__path__[0]) / "exp").glob("*.yaml"))
# As little as 1% of the parameters and as much as 200% is what the papers train with.
BUDGETS = ("0.05", "0.1", "0.2", "0.5", "1", "2")
# Too small for as little, or with too many parameters that start at zero and stay unshared.
OURS = ("tiny_mlm", "tiny_squad", "golf_baseline")
# What is named of single networks: SSN's lowest, and the counts of those it stands beside.
NAMED = {
    "wrn_cifar10": ("0.01",),
    "wrn_cifar100": ("0.01",),
    "wrn50_2_imagenet": ("19M",),
    "vgg16_cifar10": ("2.64M",),
    "resnet56_cifar10": ("0.49M",),
    "resnet110_cifar10": ("1.04M",),
    "densenet40_cifar10": ("0.66M",),
    "perceiver_imagenet": ("44.9M",),
    **{f"simnet_{name}": ("0.02",) for name in ("flickr30k", "referit", "scenes")},
    **{f"{name}_squad{n}": ("18M",) for name in ("ssn", "bert_large") for n in (1, 2)},
}

# What data of one's own would say; and weights of one's own are not synthetic.
TOLD = {
    "images": ("task.classes=10",),
    "text_classification": ("task.class_names=[a,b]",),
    "minilm_squad": ("model.pretrained=null",),
}


@pytest.fixture(autouse=True)
def alone_in_the_world(monkeypatch):
    """Let nothing be downloaded, and give back what a large network took."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    yield
    gc.collect()


# The networks of the table of pruned ones, which are shared and pruned.
PRUNED = [row.overrides for row in definitions.table("hrank").rows if row.label == "SSN, pruned"]
TRAINED = [(f"+exp={exp}",) for exp in EXPERIMENTS] + [words for words in PRUNED if words]


@pytest.mark.parametrize("own", TRAINED, ids=" ".join)
def test_an_experiment_trains_on_its_synthetic(own, tmp_path):
    config = compose(*own)
    exp = config.exp
    words = [*own, "data.source=synthetic", f"data.root={tmp_path / 'none'}"]
    words += ["data.download=false", f"run_root={tmp_path / 'runs'}", "trainer.device=cpu"]
    # Two steps show what the four of a user's own synthetic run would, and one checkpoint what two.
    own_size = config.data.synthetic
    most = {"train": 4, "test": 2, "epochs": 1, "batch_size": 2}
    words += [f"data.synthetic.{key}={min(getattr(own_size, key), n)}" for key, n in most.items()]
    words += ["trainer.keep_last=1"]
    words += TOLD.get(exp, ())
    assert train.main(words) == 0
    (folder,) = (tmp_path / "runs" / exp).iterdir()
    result = results.read(folder)
    assert (result.status, result.dataset.source) == ("done", "synthetic")
    assert result.metrics is not None and result.budget is not None
    assert result.budget.used <= result.budget.allowed
    if config.pruning.method is not None:
        assert result.pruning is not None
        assert result.pruning.parameters == planned_count(*own)
        assert result.pruning.flops == planned_flops(*own)
    assert not (tmp_path / "none").exists()
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file():
            file.unlink()


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_a_plan_is_exact_at_every_budget(exp, capsys):
    words = [f"+exp={exp}", *TOLD.get(exp, ())]
    config = compose(*words)
    if not search_epochs(config):
        assert plan.main(words) == 0
        assert "inference: " in capsys.readouterr().out
    if config.sharing.templates is not None:
        return  # there the templates fix the count, which tests/cli/test_swrn_plans.py holds
    model = network(config)
    dense = sharing.count_parameters(model)
    own = () if config.budget in (None, DENSE) else (str(config.budget),)
    named = () if exp in OURS else (*NAMED.get(exp, ()), *BUDGETS)
    # In place of a grouping that only a training finds.
    single = {"groups": "single", "num_groups": None} if search_epochs(config) else {}
    for budget in dict.fromkeys((*own, *named)):
        plan_of = sharing.plan(model, budget, **plan_keywords(config) | single)
        found = plan_of.budget
        short = found.allowed - found.used
        assert 0 <= short <= max(found.allowed // 1000, len([*plan_of.layers])), found
        assert found.dense == dense


def network(config):
    task = tasks.family(config.task.family).Task(
        config.task, config.data, seed=config.seed, device=torch.device("cpu")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return models.build(config.model, task.spec)
