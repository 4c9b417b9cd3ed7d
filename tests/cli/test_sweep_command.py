"""A sweep checks its jobs once, counts them, and ends with its metric by budget."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from command_line import SMALL

from npas.cli import train
from npas.cli.app import Job
from npas.reporting.compose import compose
from npas.tasks import digits
from npas.training import Outcome

OVERRIDES = (*SMALL, "budget=0.5", "data.val_fraction=0.1")


def test_the_sweep_of_wandb_in_the_docs_starts_runs_that_log_its_metric():
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(method:.*?)```", page, re.DOTALL)
    sweep = yaml.safe_load(text)
    chosen = {"budget": "0.05", "optim.lr": "0.0123"}  # as the agent chooses and spells them
    assert sweep["parameters"].keys() == chosen.keys()
    command, *overrides = sweep["command"]
    assert command == "npas-train" and overrides.pop() == "${args_no_hyphens}"
    config = compose(*overrides, *(f"{key}={value}" for key, value in chosen.items()))
    assert (config.budget, config.optim.lr, config.wandb.mode) == ("0.05", 0.0123, "online")
    assert config.data.val_fraction and sweep["metric"]["goal"] == "maximize"
    metric = sweep["metric"]["name"]
    task = digits.Task(config.task, config.data, seed=0, device=torch.device("cpu"))
    assert metric == f"val/{task.selection_metric}"


def test_the_jobs_are_composed_and_checked_once_before_the_first_runs(run, monkeypatch):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    composed, compose = [], ConfigLoaderImpl.load_sweep_config
    within = []

    def counting(self, *arguments, **named):
        composed.append(len(within))  # how many jobs have run by then
        return compose(self, *arguments, **named)

    def job(config):
        within.append(config)
        return Job(f"seed {config.seed}")

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counting)
    monkeypatch.setattr(train, "run", job)
    answer = run("npas-train", "-m", "seed=range(3,6)", "budget=0.2", code=0)
    messages = [line.removeprefix("npas-train: ") for line in answer.err.splitlines()]
    assert messages == [f"[{number}/3] seed={number + 2}" for number in (1, 2, 3)]
    assert composed == [0, 0, 0] and len(within) == 3


def test_a_job_whose_options_exclude_each_other_is_found_before_the_first_runs(run, monkeypatch):
    within: list[object] = []
    monkeypatch.setattr(train, "run", within.append)
    overrides = ("sharing.generator=wavg,hash", "sharing.upsample_templates=2")
    answer = run("npas-train", "-m", *overrides)
    assert answer.code == 2 and "upsample_templates=2" in answer.err.splitlines()[-1]
    assert not within


@pytest.mark.slow
def test_a_sweep_ends_with_the_metric_by_budget_over_seeds_and_its_plot(run, monkeypatch):
    accuracies = itertools.count(90)

    def trained(*anything):
        metrics = {"last": {"accuracy": next(accuracies)}, "selected": None, "selected_on": None}
        return Outcome("done", metrics, 6, 1, 1.0, 0)

    monkeypatch.setattr("npas.training.train", trained)
    overrides = ("npas-train", "-m", *SMALL, "budget=0.3,0.5", "seed=0,1")
    answer = run(*overrides, code=0)
    counts = [line for line in answer.err.splitlines() if line.startswith("npas-train: [")]
    assert counts[-1] == "npas-train: [4/4] budget=0.5 seed=1" and len(counts) == 4
    table = answer.out[answer.out.rindex("\n\n") + 2 :].splitlines()
    assert re.fullmatch(r"runs +budget +parameters +metric +value +n", table[0])
    for line, budget in zip(table[1:3], ("0.3", "0.5"), strict=True):
        pattern = rf"digits +{budget} +[\d,]+ +accuracy, % +[\d.]+ ± [\d.]+ +2"
        assert re.fullmatch(pattern, line), line
    assert table[3] == "plot: runs/digits/by_budget.png"
    assert Path("runs/digits/by_budget.svg").exists()
    skipped = run(*overrides)  # the same table of what is there
    assert skipped.out[skipped.out.rindex("\n\n") + 2 :].splitlines() == table
    Path("runs/digits/by_budget.png").unlink()
    assert "plot: " not in run(*overrides[:-2], "budget=0.3", "seed=0,1").out  # one setting
    two = run(*overrides[:-2], "budget=0.3", "optim.lr=0.1,0.2").out
    assert "digits: optim.lr=0.1 " in two and "digits: optim.lr=0.2 " in two and "±" not in two
    assert not Path("runs/digits/by_budget.png").exists()  # of as many parameters
