"""npas-train trains, writes one folder a run, and skips what is finished."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from cifar_files import write_cifar
from command_line import SMALL
from omegaconf import OmegaConf

from npas.cli import experiments, train
from npas.config import config_hash, run_dir
from npas.reporting import results
from npas.sharing import BudgetReport
from npas.tasks import digits
from npas.training import Outcome

TRAIN = ("npas-train", *SMALL)
HALF = (*TRAIN, "budget=0.5")


def folder_of_run(root="runs"):
    (config,) = Path(root).glob("*/*/config.yaml")
    return config.parent


def test_a_run_leaves_what_the_design_says_and_nothing_else(trained):
    assert {"config.yaml", "log.jsonl", "result.json", "checkpoints"} == {
        path.name for path in trained.iterdir()
    }
    result = results.read(trained)
    assert (result.status, result.exp, result.epochs) == ("done", "digits", 1)
    budget = result.budget
    assert budget.asked == "0.5" and budget.used <= budget.allowed == budget.dense // 2
    assert 0 <= result.metrics.last["accuracy"] <= 100
    assert [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [path.name for path in trained.parent.parent.iterdir()] == ["digits"]
    stored = OmegaConf.to_container(OmegaConf.load(trained / "config.yaml"))
    config = experiments.check(stored)
    assert run_dir(config) == trained and result.config_hash == config_hash(config)


def test_a_finished_run_is_skipped_unless_forced(run):
    first = run(*TRAIN, "budget=50%")
    assert first.code == 0 and first.out.startswith("layer")
    assert "stages.0.0.conv1.weight" in first.out
    folder = folder_of_run()
    for word in ("done: asked 0.5", "allowed 10,253", "used 10,", "test accuracy", str(folder)):
        assert word in first.out.splitlines()[-1]
    stored = (folder / "result.json").read_bytes()
    again = run(*HALF, "wandb.tags=[other]", "trainer.log_every=1")
    assert again.code == 0
    assert again.out.startswith("skipped: ") and str(folder) in again.out
    assert (folder / "result.json").read_bytes() == stored
    assert run(*HALF, "force=true").out.splitlines()[-1].startswith("done: ")
    assert (folder / "result.json").read_bytes() != stored and folder_of_run() == folder


def test_the_closing_line_says_of_which_epoch_and_part_each_figure_is(run):
    """The chosen epoch was chosen on held-out data; its figure is of the test set."""
    last = run(*HALF, "data.val_fraction=0.1", "epochs=2").out.splitlines()[-1]
    assert re.search(r"% \(last epoch\), [\d.]+% \(chosen on val accuracy\); ", last)


def test_a_dense_run_shares_nothing_and_says_what_it_ignores(run):
    ignored = ("sharing=learned", "sharing.generator=emb")
    answer = run(*TRAIN, "budget=dense", *ignored, code=0)
    assert answer.out.startswith("dense network: 20,506 parameters")
    assert "sharing.generator" in answer.err and "sharing.num_groups" in answer.err
    assert "ignored: budget=dense shares nothing" in answer.err
    assert "searching" not in answer.out
    result = results.read(folder_of_run())
    assert result.split == results.Split(0, 0, 0, 20506)
    assert result.budget == BudgetReport.of_dense(20506)


def test_a_sweep_gives_each_job_its_folder_and_a_failed_one_does_not_stop_it(run):
    answer = run("npas-train", "-m", *SMALL, "budget=0.0001,0.5")
    assert answer.code == 1
    folder_of_run()
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["done:", "failed", "done"]
    assert "budget=0.0001" in lines[-2] and "ask for budget=" in lines[-2]
    assert "Traceback" not in answer.err
    assert [path.name for path in Path().iterdir()] == ["runs"]
    again = run("npas-train", *SMALL, "budget=0.5,50%", "--multirun")
    assert again.code == 0
    assert [line.split()[0] for line in again.out.splitlines()[-2:]] == ["skipped"] * 2


def test_a_sweep_is_checked_whole_before_its_first_job(run, tmp_path):
    for word in ("epochs=1", "hydra.sweeper.max_batch_size=1"):
        assert not list(tmp_path.iterdir())
        answer = run("npas-train", "-m", *SMALL, "budget=0.5", "optim.lr=0.1,-1", word)
        assert answer.code == 2
        assert answer.err == "npas-train: optim.lr must be above 0, got -1.0\n"


@pytest.mark.parametrize(
    ("fits", "advice"),
    [
        (2, "trainer.grad_accum_steps=4 (parts of 2) fits"),
        (0, "not even one sample at a time fits; choose a smaller network or precision"),
    ],
)
def test_out_of_memory_says_what_would_fit(run, monkeypatch, fits, advice):
    loss = digits.Task.loss

    def hungry(self, model, batch):
        if batch.size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 17 GiB")
        return loss(self, model, batch)

    monkeypatch.setattr(digits.Task, "loss", hungry)
    answer = run(*HALF, "batch_size=8")
    assert answer.code == 1
    folder = folder_of_run()
    error = results.read(folder).error
    assert error == f"out of memory with batch_size 8: {advice}"
    assert answer.err == f"npas-train: failed: {error}; {folder}\n"


def test_a_run_that_diverged_ends_with_exit_code_1_and_says_where(run, monkeypatch):
    loss = digits.Task.loss
    monkeypatch.setattr(digits.Task, "loss", lambda *a: (loss(*a)[0] * math.inf, {}))
    dry = run(*HALF, "dry_run=true")
    assert dry.code == 2
    assert "loss or gradient not finite at step 1: lower optim.lr" in dry.err
    assert not list(Path().iterdir())
    assert run(*HALF).code == 1
    result = results.read(folder_of_run())
    assert result.status == "diverged" and result.divergence.step == 1
    assert {*result.divergence.norms["npas_bank_0"]} == {"weight", "gradient"}
    metrics = {"last": {"accuracy": math.nan}, "selected": None, "selected_on": None}
    outcome = Outcome("diverged", metrics, 3, 0, 1.0, 0, "loss not finite at step 3")
    monkeypatch.setattr("npas.training.train", lambda *anything: outcome)
    answer = run(*HALF)
    assert answer.code == 1 and "diverged: loss not finite at step 3" in answer.err


def test_templates_take_the_place_of_a_budget(run):
    run(*TRAIN, "+exp=digits_swrn", "sharing.templates=2", "model.depth=16", code=0)
    folder = folder_of_run()
    assert folder.name.startswith("templates-2_seed-0_")
    split = results.read(folder).split
    assert split.bank == 2 * 9 * (8 * 8 + 16 * 16 + 32 * 32)
    assert split.coefficients == 2 * 6


def test_a_dry_run_does_one_step_and_writes_nothing(run, tmp_path):
    answer = run(*HALF, "dry_run=true", "trainer.grad_accum_steps=2", "data.verify=warn")
    line = "data.verify=warn has no effect: no checksums of digits are known"
    assert answer.code == 0 and answer.err.count("\n") == 1 and line in answer.err
    assert "batch    256 = 2 parts x 128\n" in answer.out
    last = answer.out.splitlines()[-1]
    assert last.startswith("dry run: one step: loss ") and "nothing was written" in last
    assert not list(tmp_path.iterdir())


def test_a_synthetic_run_says_what_it_is_wherever_it_gives_a_figure(run):
    arguments = (*TRAIN, "data.source=synthetic", "data.synthetic.epochs=2", "epochs=9")
    answer = run(*arguments, code=0)
    line = "data     synthetic, in the format of digits: a dry run with epochs=2 batch_size=2"
    assert line in answer.out
    assert "% on synthetic data" in answer.out
    assert results.read(folder_of_run()).dataset.source == "synthetic"
    assert run(*arguments).out.startswith("skipped: ")


def test_a_copy_of_the_data_is_recorded_and_said(run, tmp_path):
    root = tmp_path / "data"
    write_cifar(root, 10, 40, 20)
    overrides = ("+exp=wrn_cifar10", "batch_size=20", "data.val_fraction=0", f"data.root={root}")
    answer = run(*TRAIN, *overrides, "data.verify=warn", code=0)
    assert "% on data that are not the published ones" in answer.out
    dataset = results.read(folder_of_run()).dataset
    assert dataset.published is False and len(dataset.files) == 6


def test_a_reader_who_has_gone_ends_no_training_and_the_environment_overrules_tracking(
    run, monkeypatch, capsys
):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody_reads, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", nobody_reads)
        assert train.main([*HALF[1:], "wandb.mode=offline"]) == 0
    message = "npas-train: WANDB_MODE=disabled overrules wandb.mode=offline\n"
    assert capsys.readouterr().err == message
    assert results.read(folder_of_run()).status == "done"
    assert not list(Path("runs").rglob("wandb*"))
