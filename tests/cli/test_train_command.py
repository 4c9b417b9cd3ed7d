"""npas-train trains, leaves one folder a run, and never does the same work twice."""

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SMALL, Run
from omegaconf import OmegaConf

from npas.cli import runs, train
from npas.config import config_hash, run_dir
from npas.reporting import results
from npas.tasks import digits
from npas.training import Outcome


def folders(root: str = "runs") -> list[Path]:
    return sorted(path.parent for path in Path(root).glob("*/*/config.yaml"))


def test_a_run_leaves_what_the_design_says_and_nothing_else(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    assert {"config.yaml", "log.jsonl", "result.json", "checkpoints"} == {
        path.name for path in trained.iterdir()
    }
    result = results.read(trained)
    assert (result.status, result.exp, result.epochs) == ("done", "digits", 1)
    assert result.budget is not None and result.split is not None
    assert result.budget.asked == "0.5"
    assert result.budget.used <= result.budget.allowed == result.budget.dense // 2
    assert result.metrics is not None and 0 <= result.metrics.last["accuracy"] <= 100
    assert [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [path.name for path in trained.parent.parent.iterdir()] == ["digits"]


def test_the_folder_is_that_of_the_stored_config(trained: Path) -> None:
    stored = OmegaConf.to_container(OmegaConf.load(trained / "config.yaml"))
    config = runs.check(stored)  # type: ignore[arg-type]
    assert run_dir(config) == trained
    assert results.read(trained).config_hash == config_hash(config)


def test_the_plan_comes_first_and_one_line_closes(run: Run) -> None:
    answer = run("npas-train", *SMALL, "budget=50%")
    assert answer.code == 0
    first, *_, last = answer.out.splitlines()
    assert first.startswith("layer")
    assert "stages.0.0.conv1.weight" in answer.out
    (folder,) = folders()
    for word in ("done: asked 0.5", "allowed 10,253", "used 10,", "test accuracy", str(folder)):
        assert word in last


def test_the_closing_line_says_of_which_epoch_and_part_each_figure_is(run: Run) -> None:
    """The chosen epoch was chosen on held-out data; its figure is of the test set."""
    arguments = ("npas-train", *SMALL, "budget=0.5", "data.val_fraction=0.1", "epochs=2")
    last = run(*arguments).out.splitlines()[-1]
    (folder,) = folders()
    stored = results.read(folder)
    later = {"accuracy": 61.2, "val/accuracy": 7.0}
    chosen = {"accuracy": 62.01, "val/accuracy": 7.44}
    epochs = {"epoch": [1, 2, 3], "val/accuracy": [7.44, 7.44, 7.0]}
    metrics = results.Metrics(later, chosen, "val accuracy")
    known = dataclasses.replace(stored, metrics=metrics, history=epochs)
    text = "test accuracy 61.20% (last epoch), 62.01% (epoch 2, chosen on val accuracy); "
    for result, expected in (
        (known, text),
        (dataclasses.replace(known, history=None), text.replace("epoch 2, ", "")),
        (
            dataclasses.replace(known, metrics=results.Metrics(later)),
            "test accuracy 61.20% (last epoch); ",
        ),
    ):
        results.write(folder, result)
        assert expected in run(*arguments).out, "as a run that is done already"
    assert re.search(r"% \(last epoch\), [\d.]+% \(epoch [12], chosen on val accuracy\); ", last)


def test_the_committed_dense_figure_stands_beside_the_result(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from npas.reporting import tables

    monkeypatch.setattr(tables, "dense_figure", lambda *_: tables.Summary(98.61, 0.2, 3))
    assert "; dense: 98.61 ± 0.20% over 3 seeds;" in run("npas-train", *SMALL, "budget=0.5").out
    assert "dense:" not in run("npas-train", *SMALL, "budget=dense").out


def test_a_finished_run_is_skipped_unless_forced(run: Run) -> None:
    arguments = ("npas-train", *SMALL, "budget=0.5")
    assert run(*arguments).code == 0
    (folder,) = folders()
    first = (folder / "result.json").read_bytes()
    again = run(*arguments, "wandb.tags=[other]", "trainer.log_every=1", "budget=50%")
    assert again.code == 0
    assert again.out.startswith("skipped: ") and str(folder) in again.out
    assert (folder / "result.json").read_bytes() == first
    forced = run(*arguments, "force=true")
    assert forced.out.splitlines()[-1].startswith("done: ")
    assert (folder / "result.json").read_bytes() != first
    assert folders() == [folder]


def test_a_dense_run_shares_nothing_and_says_what_it_ignores(run: Run) -> None:
    answer = run("npas-train", *SMALL, "budget=dense", "sharing.generator=emb")
    assert answer.code == 0
    assert answer.out.startswith("dense network: 20,506 parameters")
    assert "warning: sharing.generator ignored: budget=dense shares nothing" in answer.err
    (folder,) = folders()
    result = results.read(folder)
    assert result.split == results.Split(0, 0, 0, 20506)
    assert result.budget == results.BudgetReport.of_dense(20506)


def test_a_sweep_gives_each_job_its_folder_and_a_failed_one_does_not_stop_it(run: Run) -> None:
    answer = run("npas-train", "-m", *SMALL, "budget=0.0001,0.5,dense")
    assert answer.code == 1
    assert len(folders()) == 2
    closing = answer.out.splitlines()[-3:]
    assert [line.split()[0] for line in closing] == ["failed", "done", "done"]
    assert "budget=0.0001" in closing[0] and "ask for budget=" in closing[0]
    assert "Traceback" not in answer.err
    assert [path.name for path in Path().iterdir()] == ["runs"]
    assert [path.name for path in Path("runs").iterdir()] == ["digits"]

    again = run("npas-train", *SMALL, "budget=0.5,dense", "--multirun")
    assert again.code == 0
    assert [line.split()[0] for line in again.out.splitlines()[-2:]] == ["skipped"] * 2


def test_a_sweep_is_checked_whole_before_its_first_job(run: Run, tmp_path: Path) -> None:
    answer = run("npas-train", "-m", *SMALL, "budget=0.5", "optim.lr=0.1,-1")
    assert answer.code == 2
    assert answer.err == "npas-train: optim.lr must be above 0, got -1.0\n"
    assert not list(tmp_path.iterdir())


def test_a_run_that_breaks_is_recorded_as_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*anything: object) -> None:
        raise RuntimeError("a cable\nhas come loose")

    monkeypatch.setattr("npas.training.train", broken)
    answer = run("npas-train", *SMALL, "budget=0.5")
    assert answer.code == 1
    (folder,) = folders()
    result = results.read(folder)
    assert result.status == "failed" and result.metrics is None
    assert result.error == "RuntimeError: a cable has come loose"
    assert answer.err.splitlines()[-1] == f"npas-train: failed: {result.error}; {folder}"


@pytest.mark.parametrize(
    ("fits", "advice"),
    [
        (64, "trainer.grad_accum_steps=4 (parts of 64) fits"),
        (0, "not even one sample at a time fits; choose a smaller network or precision"),
    ],
)
def test_out_of_memory_says_what_would_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch, fits: int, advice: str
) -> None:
    loss = digits.Task.loss

    def hungry(self: digits.Task, model: Any, batch: Any) -> Any:
        if batch.size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 17 GiB")
        return loss(self, model, batch)

    monkeypatch.setattr(digits.Task, "loss", hungry)
    answer = run("npas-train", *SMALL, "budget=0.5")
    assert answer.code == 1 and "Traceback" not in answer.err
    (folder,) = folders()
    error = results.read(folder).error
    assert error == f"out of memory with batch_size 256: {advice}"
    assert answer.err == f"npas-train: failed: {error}; {folder}\n"


def test_a_run_that_failed_is_taken_up_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*anything: object) -> None:
        raise RuntimeError("a cable")

    with monkeypatch.context() as patch:
        patch.setattr("npas.training.train", broken)
        assert run("npas-train", *SMALL, "budget=0.5").code == 1
    assert run("npas-train", *SMALL, "budget=0.5").code == 0
    (folder,) = folders()
    assert results.read(folder).status == "done"


def test_a_run_that_diverged_ends_with_exit_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {"last": {"accuracy": math.nan}, "selected": None, "selected_on": None}
    outcome = Outcome("diverged", metrics, 3, 0, 1.0, 0, "loss not finite at step 3")
    monkeypatch.setattr("npas.training.train", lambda *anything: outcome)
    answer = run("npas-train", *SMALL, "budget=0.5")
    assert answer.code == 1
    (folder,) = folders()
    assert results.read(folder).status == "diverged"
    assert "diverged: loss not finite at step 3" in answer.err


def test_a_run_that_cannot_begin_leaves_no_folder_of_its_own(run: Run) -> None:
    Path("runs/digits").mkdir(parents=True)
    answer = run("npas-train", *SMALL, "batch_size=100000", "budget=0.5")
    assert answer.code == 2
    assert not list(Path("runs/digits").iterdir())


def test_templates_take_the_place_of_a_budget(run: Run) -> None:
    arguments = ("budget=null", "sharing.templates=2", "sharing.groups=shape")
    answer = run("npas-train", *SMALL, *arguments)
    assert answer.code == 0, answer.err
    (folder,) = folders()
    assert folder.name.startswith("templates-2_seed-0_")


def test_the_released_layout_trains_and_its_result_says_by_how_much_it_oversteps(run: Run) -> None:
    answer = run("npas-train", *SMALL, "budget=50%", "sharing=reference")
    assert answer.code == 0, answer.err
    (folder,) = folders()
    result = results.read(folder)
    assert result.budget is not None
    assert result.budget.used > result.budget.allowed and result.budget.utilization > 1


def test_a_dry_run_does_one_step_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    answer = run("npas-train", *SMALL, "budget=0.5", "dry_run=true", "trainer.grad_accum_steps=2")
    assert (answer.code, answer.err) == (0, "")
    assert "batch    256 = 2 parts x 128\n" in answer.out
    last = answer.out.splitlines()[-1]
    assert last.startswith("dry run: one step: loss ") and "nothing was written" in last
    assert not list(tmp_path.iterdir())


def test_a_dry_run_tells_of_numbers_that_go_wrong(run: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        loss = digits.Task.loss
        patch.setattr(digits.Task, "loss", lambda *a: (loss(*a)[0] * math.nan, {}))
        answer = run("npas-train", *SMALL, "budget=0.5", "dry_run=true")
    assert answer.code == 2
    assert "loss or gradient not finite at step 1: lower optim.lr" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_diverged_run_says_at_which_step_and_what_the_norms_were(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = digits.Task.loss
    monkeypatch.setattr(digits.Task, "loss", lambda *a: (loss(*a)[0] * math.inf, {}))
    answer = run("npas-train", *SMALL, "budget=0.5")
    assert answer.code == 1
    (folder,) = folders()
    result = results.read(folder)
    assert result.status == "diverged" and result.divergence is not None
    assert result.divergence.step == 1
    assert {*result.divergence.norms["npas_bank_0"]} == {"weight", "gradient"}


def test_a_reader_who_has_gone_ends_no_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody_reads, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", nobody_reads)
        assert train.main([*SMALL, "budget=0.5"]) == 0
    (folder,) = folders()
    assert results.read(folder).status == "done"


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_the_environment_overrules_the_tracking_mode_and_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    answer = run("npas-train", *SMALL, "budget=0.5", f"wandb.mode={mode}")
    line = "npas-train: WANDB_MODE=disabled overrules wandb.mode=offline\n"
    assert answer.err == (line if mode == "offline" else "")
    assert not list(Path("runs").rglob("wandb*"))
