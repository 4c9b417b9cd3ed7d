"""A resumed training equals an uninterrupted one to the bit."""

import logging
import os
import shutil
from dataclasses import replace

import pytest
from torch import nn
from trained import equal, log, same

import npas
from npas.cli.experiments import restore
from npas.models._cnn import initialize
from npas.sharing.layout.allocator import allocate
from npas.training import build
from npas.training.checkpoint import Checkpoints
from npas.utils.git import Git

# The rate grows beyond all measure after the first epoch, which so stays the best.
FIRST_IS_BEST = {"lr": 0.1, "milestones": [1], "gamma": 100.0}


def saved(folder):
    """All tensors of the newest checkpoint: weights, optimizer, RNG."""
    newest = Checkpoints(folder / "checkpoints").newest()
    assert newest is not None
    names = ("model", "optimizer", "rng")
    return {f"{name}/{k}": v for name in names for k, v in newest.tensors(name).items()}


CASES = [
    {"budget": "0.2"},
    {"budget": "dense", "data": {"val_fraction": 0.0}, "trainer": {"keep_last": 1}},
]
SLOW = [
    {"budget": "0.5", "precision": "fp16"},
    {
        "budget": "0.8",
        "optim": {"name": "muon", "lr": 0.02, "schedule": "cosine", "milestones": []},
        "sharing": {"coefficient_init": "cosine", "train_coefficients": False, "low_rank": 2},
        "trainer": {"grad_accum_steps": 2},
    },
    {
        "budget": "0.5",
        "optim": {"ema_decay": 0.9},
        "pruning": {"method": "hrank", "schedule": "gradual", "times": 3, "start": 0.4, "end": 0.8},
    },
]
CASES += [pytest.param(case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_resume_is_bit_exact(run_small, interrupt, tmp_path, case):
    straight, expected = run_small("straight", **case)
    interrupt(1, "here", **case)
    shutil.move(tmp_path / "here", tmp_path / "resumed")  # a run may be moved
    resumed, outcome = run_small("resumed", **case)
    again, repeated = run_small("resumed", **case)  # a finished run trains no more
    assert same(straight.model, resumed.model) and same(straight.model, again.model)
    assert outcome.metrics == repeated.metrics == expected.metrics
    assert (outcome.steps, outcome.epochs) == (expected.steps, expected.epochs)
    assert log(tmp_path / "resumed") == log(tmp_path / "straight")
    one, other = saved(tmp_path / "straight"), saved(tmp_path / "resumed")
    assert one.keys() == other.keys() and equal(one, other)


def spread_unevenly(model, *rest):
    """Initialize as another version of the library might, so that scales are laid out again."""
    initialize(model, *rest)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for i, module in enumerate(convs):
        module.weight.data *= 1.5 ** (i % 3)


@pytest.mark.slow
@pytest.mark.parametrize("optim", [{}, {"ema_decay": 0.9}], ids=["plain", "averaged"])
def test_a_resumed_run_keeps_its_scales_whatever_the_initializer_has_become(
    run_small, interrupt, monkeypatch, optim, tmp_path
):
    case = {"budget": "0.5", "optim": optim, "model": {"depth": 16}}
    straight, expected = run_small("straight", **case)
    interrupt(1, "resumed", **case)
    monkeypatch.setattr("npas.models.wrn.initialize", spread_unevenly)
    assert npas.allocation(build(straight.config).model) != straight.allocation
    resumed, outcome = run_small("resumed", **case)
    assert same(straight.model, resumed.model) and outcome.metrics == expected.metrics
    restored = restore(str(tmp_path / "resumed"), {})  # as npas-eval, -export and -fold do
    assert restored.allocation == straight.allocation
    assert optim or same(straight.model, restored.model)


def test_a_checkpoint_of_another_allocation_is_not_resumed(run_small, interrupt, monkeypatch):
    interrupt(1, budget="0.5")

    def allocate_otherwise(*arguments):
        made = allocate(*arguments)
        return replace(made, groups=tuple(replace(g, bank=g.bank - 1) for g in made.groups))

    monkeypatch.setattr("npas.sharing.planning.allocate", allocate_otherwise)
    with pytest.raises(
        ValueError, match=r"does not fit this run \(.*plans another allocation.* resume=never"
    ):
        run_small(budget="0.5")


def test_a_best_epoch_that_is_lost_ends_no_run(run_small, interrupt, tmp_path, caplog):
    interrupt(2, epochs=3, optim=FIRST_IS_BEST)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000005")
    _, outcome = run_small("run", epochs=3, optim=FIRST_IS_BEST)
    assert outcome.status == "done" and outcome.metrics["last"]
    assert outcome.metrics["selected"] is None and outcome.metrics["selected_on"] is None
    assert "the best epoch cannot be measured on the test set" in caplog.text


@pytest.mark.slow
def test_a_run_goes_on_from_a_named_checkpoint_and_then_from_its_own(
    run_small, interrupt, tmp_path, caplog
):
    case = {"epochs": 4, "optim": FIRST_IS_BEST}
    straight, expected = run_small("straight", **case)
    interrupt(1, "old", **case)
    old = tmp_path / "old"
    interrupt(2, "new", **case, resume=str(old))
    interrupt(3, "new", **case)
    with caplog.at_level(logging.INFO):
        for name, path in (
            ("new", os.path.relpath(old)),  # its own third epoch, not the other's first
            ("one", old / "checkpoints" / "step-00000005"),
        ):
            resumed, outcome = run_small(name, **case, resume=str(path))
            assert same(straight.model, resumed.model) and outcome.metrics == expected.metrics
            assert log(tmp_path / name) == log(tmp_path / "straight")  # the other's lines, too
    assert caplog.text.count("after step 15") == 1 and caplog.text.count("after step 5") == 1
    # force begins again with what is named
    run_small("new", **case, resume=str(old), force=True)
    assert log(tmp_path / "new") == log(tmp_path / "straight")


def test_commits_that_trained_a_part_are_recorded(run_small, interrupt, monkeypatch, caplog):
    for after, name in enumerate("aab", 1):
        code = Git(name * 40, name == "b")
        monkeypatch.setattr("npas.training.state.git_state", lambda code=code: code)
        if after < 3:
            interrupt(after, epochs=3)
            assert "other code" not in caplog.text
    _, outcome = run_small(epochs=3)
    assert outcome.earlier_code == [{"steps": 10, "commit": "a" * 40, "dirty": False}]
    assert f"(commit {'a' * 12}, now {'b' * 12} with changes)" in caplog.text
    caplog.clear()
    _, again = run_small(epochs=3)  # finished
    assert again.earlier_code == outcome.earlier_code and not caplog.text


def test_going_back_to_an_earlier_step_drops_the_later_ones(run_small, tmp_path):
    straight, _ = run_small("run", epochs=3)
    early = tmp_path / "run" / "checkpoints" / "step-00000010"
    resumed, _ = run_small("run", epochs=3, resume=str(early))
    assert same(straight.model, resumed.model)
    assert log(tmp_path / "run")[-1]["step"] == 15


def test_resuming_another_config_names_the_keys_that_differ(run_small, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        run_small(resume=str(tmp_path / "nowhere"))
    run_small("old", epochs=1)
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.1 there, 0\.2 here") as error:
        run_small("new", epochs=1, seed=3, optim={"lr": 0.2}, resume=str(tmp_path / "old"))
    assert "seed: 0 there, 3 here" in str(error.value)
    for other in ("trainer", "resume:", "momentum", "\n"):
        assert other not in str(error.value)
    _, outcome = run_small("old", epochs=1, trainer={"log_every": 5})  # which decides nothing
    assert outcome.status == "done"


def test_checkpoints_hold_no_pickle(run_small, tmp_path):
    run_small(epochs=1)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
