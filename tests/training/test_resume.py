"""A training that was stopped goes on as if it had not been: equal to the bit."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import npas
from npas.cli.runs import restore
from npas.models._cnn import initialize
from npas.sharing.allocator import allocate
from npas.training import Experiment, build, train
from npas.training.checkpoint import Checkpoints
from npas.training.state import TrainState


class Stopped(Exception):
    """Stands for a kill right after a checkpoint was written."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch):
    """Return a switch: the next trainings stop after their n-th epoch's checkpoint."""

    def switch(epochs: int | None) -> None:
        monkeypatch.undo()
        if epochs is not None:
            save = TrainState.save

            def save_and_stop(self: TrainState) -> None:
                save(self)
                if self.progress.epoch == epochs:
                    raise Stopped

            monkeypatch.setattr(TrainState, "save", save_and_stop)

    return switch


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: weights, optimizer, RNG."""
    newest = Checkpoints(folder / "checkpoints").newest()
    assert newest is not None
    names = ("model", "optimizer", "rng")
    return {f"{name}/{k}": v for name in names for k, v in newest.tensors(name).items()}


def log(folder: Path) -> list[dict[str, Any]]:
    """The logged figures, without the times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def same_state(one: Experiment, other: Experiment) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


CASES = [
    {"budget": "dense"},
    {"budget": "0.2"},
    pytest.param({"budget": "0.5", "precision": "fp16"}, marks=pytest.mark.slow),
    {"budget": "dense", "data": {"val_fraction": 0.0}},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(
    run_small, stop_after, tmp_path: Path, case: dict[str, Any]
) -> None:
    straight, expected = run_small("straight", **case)
    stop_after(1)
    with pytest.raises(Stopped):
        run_small("resumed", **case)
    stop_after(None)
    torch.manual_seed(99)  # another process would not have this one's generator either
    resumed, outcome = run_small("resumed", **case)
    assert same_state(straight, resumed)
    assert outcome.metrics == expected.metrics
    assert (outcome.steps, outcome.epochs) == (expected.steps, expected.epochs)
    assert log(tmp_path / "resumed") == log(tmp_path / "straight")
    one, other = saved(tmp_path / "straight"), saved(tmp_path / "resumed")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    run_small, stop_after, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, expected = run_small("straight", epochs=3)
    stop_after(2)
    with pytest.raises(Stopped):
        run_small("resumed", epochs=3)
    stop_after(None)
    weights = tmp_path / "resumed" / "checkpoints" / "step-00000010" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 4
    weights.write_bytes(data)
    with caplog.at_level(logging.INFO):
        resumed, outcome = run_small("resumed", epochs=3)
    assert "step-00000010 is damaged: ['model.safetensors']" in caplog.text
    assert "resuming from" in caplog.text and "step-00000005" in caplog.text
    assert same_state(straight, resumed) and outcome.metrics == expected.metrics
    assert log(tmp_path / "resumed") == log(tmp_path / "straight")


def spread_unevenly(model: nn.Module, *rest: Any) -> None:
    """Initialize as another version of the library might, so that scales are laid out again."""
    initialize(model, *rest)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for i, module in enumerate(convs):
        module.weight.data *= 1.5 ** (i % 3)


@pytest.mark.parametrize("optim", [{}, {"ema_decay": 0.9}], ids=["plain", "averaged"])
def test_a_resumed_run_keeps_its_scales_whatever_the_initializer_has_become(
    run_small, stop_after, monkeypatch: pytest.MonkeyPatch, optim: dict[str, Any], tmp_path: Path
) -> None:
    case = {"budget": "0.5", "optim": optim, "model": {"depth": 16}}
    straight, expected = run_small("straight", **case)
    stop_after(1)
    with pytest.raises(Stopped):
        run_small("resumed", **case)
    stop_after(None)
    monkeypatch.setattr("npas.models.wrn.initialize", spread_unevenly)
    assert npas.allocation(build(straight.config).model) != straight.allocation
    resumed, outcome = run_small("resumed", **case)
    assert same_state(straight, resumed) and outcome.metrics == expected.metrics
    restored = restore(str(tmp_path / "resumed"), {})  # as npas-eval, -export and -fold do
    assert restored.allocation == straight.allocation
    if not optim:
        assert same_state(straight, restored)


def test_a_checkpoint_of_another_allocation_is_not_resumed(
    run_small, stop_after, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(1)
    with pytest.raises(Stopped):
        run_small("resumed", budget="0.5")
    stop_after(None)

    def allocate_otherwise(*arguments: Any) -> npas.Allocation:
        made = allocate(*arguments)
        return replace(made, groups=tuple(replace(g, bank=g.bank - 1) for g in made.groups))

    monkeypatch.setattr("npas.sharing.api.allocate", allocate_otherwise)
    with pytest.raises(ValueError, match=r"cannot be resumed: its allocation .* resume=never"):
        run_small("resumed", budget="0.5")


def lose(folder: Path, step: int) -> None:
    (folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").unlink()


def test_a_best_epoch_that_is_lost_ends_no_run(
    run_small, stop_after, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The rate grows beyond all measure after the first epoch, which so stays the best.
    optim = {"lr": 0.1, "milestones": [1], "gamma": 100.0}
    stop_after(3)
    with pytest.raises(Stopped):
        run_small("run", epochs=4, optim=optim)
    stop_after(None)
    lose(tmp_path / "run", 5)
    _, outcome = run_small("run", epochs=4, optim=optim)
    assert outcome.status == "done" and outcome.metrics["selected"] is not None
    assert "the best epoch so far is lost, and chosen among those to come" in caplog.text


def test_a_best_epoch_that_is_lost_before_the_test_set_is_read_is_said(
    run_small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    optim = {"lr": 0.1, "milestones": [1], "gamma": 100.0}
    save = TrainState.save

    def save_and_lose(self: TrainState) -> None:
        save(self)
        if self.progress.epoch == 3:
            lose(tmp_path / "run", 5)

    monkeypatch.setattr(TrainState, "save", save_and_lose)
    _, outcome = run_small("run", epochs=3, optim=optim)
    assert outcome.status == "done" and outcome.metrics["last"]
    assert outcome.metrics["selected"] is None and outcome.metrics["selected_on"] is None
    assert "the best epoch cannot be measured on the test set" in caplog.text


def test_a_run_that_came_from_a_named_checkpoint_goes_on_from_its_own(
    run_small, stop_after, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, expected = run_small("straight", epochs=4)
    stop_after(1)
    with pytest.raises(Stopped):
        run_small("old", epochs=4)
    named = str(tmp_path / "old")
    for epoch in (2, 3):
        stop_after(epoch)
        with pytest.raises(Stopped):
            run_small("new", epochs=4, resume=named)
    stop_after(None)
    with caplog.at_level(logging.INFO):
        resumed, outcome = run_small("new", epochs=4, resume=named)
    assert "after step 15" in caplog.text  # its own third epoch, not the first of the other
    assert same_state(straight, resumed) and outcome.metrics == expected.metrics
    assert log(tmp_path / "new") == log(tmp_path / "straight")  # the other's first lines, too


def test_a_finished_run_that_is_named_is_measured_and_taken_over_whole(
    run_small, tmp_path: Path
) -> None:
    straight, expected = run_small("straight", data={"val_fraction": 0.0})
    resumed, outcome = run_small(
        "new", data={"val_fraction": 0.0}, resume=str(tmp_path / "straight")
    )
    assert outcome.metrics == expected.metrics and same_state(straight, resumed)
    assert saved(tmp_path / "new").keys() == saved(tmp_path / "straight").keys()
    assert log(tmp_path / "new") == log(tmp_path / "straight")


def test_a_checkpoint_that_was_only_to_be_renamed_is_as_good_as_any(
    run_small, stop_after, tmp_path: Path
) -> None:
    straight, expected = run_small("straight")
    stop_after(2)
    with pytest.raises(Stopped):
        run_small("run")
    stop_after(None)
    last = tmp_path / "run" / "checkpoints" / "step-00000010"
    last.rename(last.with_name(f"{last.name}.tmp-4242"))
    resumed, outcome = run_small("run")
    assert outcome.metrics == expected.metrics and same_state(straight, resumed)
    assert last.is_dir() and not list(last.parent.glob("*.tmp-*"))


def test_force_begins_again_with_what_is_named(
    run_small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_small("old", epochs=2)
    named = str(tmp_path / "old" / "checkpoints" / "step-00000005")
    run_small("new", epochs=2, resume=named)
    caplog.clear()  # of what a test before may have let npas say
    with caplog.at_level(logging.INFO):
        run_small("new", epochs=2, resume=named, force=True)
    assert caplog.text.count("after step 5") == 1


def test_a_file_where_a_checkpoint_belongs_is_in_nobodys_way(run_small, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-00000005").touch()
    _, outcome = run_small("run", epochs=1)
    assert outcome.status == "done" and (folder / "step-00000005").is_dir()


def test_going_back_to_an_earlier_step_drops_the_later_ones(run_small, tmp_path: Path) -> None:
    straight, _ = run_small("run", epochs=3)
    early = tmp_path / "run" / "checkpoints" / "step-00000010"
    resumed, _ = run_small("run", epochs=3, resume=str(early))
    assert same_state(straight, resumed)
    assert log(tmp_path / "run")[-1]["step"] == 15


def test_a_finished_run_trains_no_more_and_gives_the_same_metrics(run_small) -> None:
    first, outcome = run_small()
    again, repeated = run_small()
    assert repeated.metrics == outcome.metrics and repeated.steps == outcome.steps
    assert same_state(first, again)


@pytest.mark.parametrize("how", [{"resume": "never"}, {"force": True}])
def test_starting_anew_forgets_the_old_run(run_small, tmp_path: Path, how: dict[str, Any]) -> None:
    run_small(epochs=2, **how)
    first = log(tmp_path / "run")
    run_small(epochs=2, **how)
    assert log(tmp_path / "run") == first


def test_another_runs_checkpoint_can_be_named(run_small, stop_after, tmp_path: Path) -> None:
    straight, expected = run_small("straight", epochs=3)
    stop_after(2)
    with pytest.raises(Stopped):
        run_small("old", epochs=3)
    stop_after(None)
    old = tmp_path / "old"
    for n, path in enumerate((old, old / "checkpoints", old / "checkpoints" / "step-00000005")):
        resumed, outcome = run_small(f"new{n}", epochs=3, resume=str(path))
        assert same_state(straight, resumed) and outcome.metrics == expected.metrics


def test_the_selected_epoch_survives_a_move_to_another_folder(
    run_small, stop_after, tmp_path: Path
) -> None:
    # The rate grows beyond all measure after the first epoch, which so stays the best.
    optim = {"lr": 0.1, "milestones": [1], "gamma": 100.0}
    _, expected = run_small("straight", epochs=4, optim=optim)
    stop_after(3)
    with pytest.raises(Stopped):
        run_small("old", epochs=4, optim=optim)
    stop_after(None)
    _, outcome = run_small("new", epochs=4, optim=optim, resume=str(tmp_path / "old"))
    assert outcome.metrics == expected.metrics


def test_another_configs_checkpoint_is_refused_with_the_keys_that_differ(
    run_small, tmp_path: Path
) -> None:
    run_small("old", epochs=1)
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.1 there, 0\.2 here") as error:
        run_small("new", epochs=1, seed=3, optim={"lr": 0.2}, resume=str(tmp_path / "old"))
    assert "seed: 0 there, 3 here" in str(error.value)
    for other in ("trainer", "resume:", "momentum", "\n"):
        assert other not in str(error.value)


def test_a_path_without_checkpoints_is_refused(run_small, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        run_small(resume=str(tmp_path / "nowhere"))


def test_settings_that_do_not_decide_the_result_may_change(
    small, run_small, stop_after, tmp_path: Path
) -> None:
    stop_after(1)
    with pytest.raises(Stopped):
        run_small("run")
    stop_after(None)
    experiment = build(small(trainer={"log_every": 5}))
    assert train(experiment, tmp_path / "run").status == "done"


def test_checkpoints_hold_no_pickle(run_small, tmp_path: Path) -> None:
    run_small(epochs=1)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}


def test_a_checkpoint_moves_with_its_folder(run_small, stop_after, tmp_path: Path) -> None:
    stop_after(1)
    with pytest.raises(Stopped):
        run_small("here")
    stop_after(None)
    shutil.move(tmp_path / "here", tmp_path / "there")
    _, outcome = run_small("there")
    assert outcome.status == "done"
