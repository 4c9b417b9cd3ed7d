"""Pruning in the course of a training: when, in which processes, what a run starts from."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from npas.config import PruningConfig
from npas.sharing.trained import pruning
from npas.training import build, prepare, train
from npas.training.checkpoint import Progress
from npas.training.distributed import Process
from npas.training.pruning import found, planned, prune, stages

CONVS = [f"stages.{n}.0.conv1" for n in range(3)]  # of 8, 16 and 32 filters


def widths(model):
    return [int(mask_F.sum()) for mask_F in pruning.kept_filters(model).values()]


def test_the_schedules_are_one_shot_and_zhu_and_guptas():
    assert stages(PruningConfig("hrank"), 200) == [(100, 1.0)]
    gradual = PruningConfig("hrank", schedule="gradual", start=0.25, end=0.75, times=2)
    assert stages(gradual, 200) == [(100, 1 - 0.5**3), (150, 1.0)]
    for steps in (1, 3):  # a run on synthetic data has so few
        assert all(step < steps for step, _ in stages(gradual, steps))


def test_filters_go_when_it_is_time_and_the_best_epoch_is_one_after(run_small, small, caplog):
    """Of 10 steps, two epochs, after 4 and 8; a rate beyond all measure makes the first best."""
    keys = {"method": "magnitude", "amount": 0.5, "schedule": "gradual"}
    keys |= {"start": 0.0, "end": 0.8, "times": 2}
    with caplog.at_level("INFO"):
        experiment, outcome = run_small(
            pruning=keys, optim={"lr": 0.1, "milestones": [1], "gamma": 100.0}
        )
    messages = [record.message for record in caplog.records if "pruned after" in record.message]
    assert messages == [
        f"pruned after step {s}: {n} of 56 filters are left" for s, n in ((4, 31), (8, 28))
    ]
    assert widths(experiment.model) == [4, 8, 16]
    chosen, last = outcome.metrics["selected"], outcome.metrics["last"]
    assert chosen["val/loss"] == last["val/loss"] == outcome.history["val/loss"][1]
    assert outcome.history["val/loss"][0] < outcome.history["val/loss"][1]
    report = found(experiment, 1000)
    assert report == planned(experiment.config, experiment.task.spec, 1000)
    assert report.parameters == report.exported < 20_000 and report.kept == 28
    shared = planned(small(budget="0.5", pruning=keys), experiment.task.spec, 1000)
    assert shared.parameters == 1000 + 2  # 56 masks
    assert (shared.exported, shared.flops) == (report.exported, report.flops)


def prune_in_ranks(rank, world, config, folder):
    """Prune in each rank, whose norms have seen other images, and write down what is kept."""
    torch.set_num_threads(1)
    experiment = build(config)
    experiment.process = Process(rank, world, torch.device("cpu"))
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    experiment.task.setup()
    experiment.model.stages[0][0].norm2.running_mean += rank
    prune(experiment, Progress(), 5, 10)
    kept = {k: v.tolist() for k, v in pruning.kept_filters(experiment.model).items()}
    Path(folder, f"kept-{rank}").write_text(json.dumps(kept))
    dist.destroy_process_group()


@pytest.mark.dist
def test_all_ranks_keep_the_same_filters(small, tmp_path):
    config = small(budget="0.5", pruning={"method": "hrank", "batches": 2})
    mp.start_processes(prune_in_ranks, (2, config, str(tmp_path)), 2, start_method="spawn")
    one, other = ((tmp_path / f"kept-{rank}").read_text() for rank in range(2))
    assert one == other and json.loads(one)[CONVS[0]].count(True) == 4


@pytest.mark.slow
def test_a_run_that_starts_from_a_pruned_one_computes_what_that_does(run_small, small, tmp_path):
    """Without masks the norms say it; with them it goes on to prune, and names no mask as fresh."""
    keys = {"method": "hrank", "amount": 0.5, "batches": 1}
    pruned, _ = run_small("pruned", pruning=keys)
    images = pruned.task.preprocess(next(pruned.task.train_batches(0, 8)).inputs)
    expected = pruned.model.eval()(images)
    start = {"init": str(tmp_path / "pruned")}
    for now in ({}, {"pruning": keys | {"amount": 0.75}}):
        again = build(small(exp="again", sharing=start, **now))
        prepare(again)
        assert again.init is not None and "fresh" not in again.init["became"]
        torch.testing.assert_close(again.model.eval()(images), expected)
    assert widths(again.model) == [4, 8, 16]
    train(again, tmp_path / "more")
    assert widths(again.model) == [2, 4, 8]
    run_small("whole", epochs=1)
    fresh = build(small(exp="fresh", sharing={"init": str(tmp_path / "whole")}, pruning=keys))
    prepare(fresh)
    assert fresh.init is not None and "fresh" not in fresh.init["became"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"amount": 0.99}, "pruning.method=hrank: an amount of 0.99 leaves none of the 8 filters"),
        ({"amount": {"head": 0.5}}, "pruning.method=hrank: no prunable layer matches 'head'"),
        ({"amount": 1}, "pruning.amount must be below 1, got 1"),
        ({"amount": {"a": -0.1}}, "pruning.amount.a must be at least 0, got -0.1"),
        ({"end": 1.0}, "pruning.end must be below 1, got 1"),
        ({"schedule": "gradual", "end": 0.1}, "pruning.end must be at least 0.5, got 0.1"),
        ({"batches": 0}, "pruning.batches must be at least 1, got 0"),
        ({"times": 10**9}, "pruning.times must be at most 1000"),
    ],
)
def test_invalid_pruning_is_refused_before_training(keys, message, small):
    with pytest.raises(ValueError, match=message) as error:
        build(small(pruning={"method": "hrank", **keys}))
    assert "\n" not in str(error.value)
