"""What every rank of a run must agree on: the figures of the chosen weights, and the gradient."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from npas import config as schema
from npas.cli import train
from npas.reporting.compose import compose
from npas.training import build
from npas.training.distributed import Process
from npas.training.metrics import final_metrics, validate
from npas.training.optim import build_optimizer
from npas.training.state import TrainState


@pytest.mark.parametrize(
    ("devices", "world", "local", "expected"),
    [
        (1, 4, 4, 4),  # torchrun or srun on one machine
        (4, 8, 4, 8),  # on two
        (4, 1, 1, 4),  # the process that is to start them
        (2, 4, 4, 2),  # refused later: see `joined`
    ],
)
def test_the_number_of_processes_is_a_run_s_identity_however_they_were_started(
    monkeypatch, devices, world, local, expected
):
    config = compose("+exp=digits", f"trainer.devices={devices}")
    folders = set()
    for rank in range(world):
        if world > 1:
            variables = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % local}
            for name, value in {**variables, "LOCAL_WORLD_SIZE": local}.items():
                monkeypatch.setenv(name, str(value))
        found = train.as_started(config)
        assert found.trainer.devices == expected
        folders.add(schema.run_dir(found))
    assert len(folders) == 1


def measure_chosen(rank, world, config, folder):
    """Let the first epoch be the best of two, and write down what each rank's test set says."""
    torch.set_num_threads(1)
    experiment = build(config)
    experiment.process = Process(rank, world, torch.device("cpu"))
    if world > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    task, model = experiment.task, experiment.model
    task.setup()
    optimizer = build_optimizer(model, config.optim)
    state = TrainState(experiment, optimizer, Path(folder) / f"run-{world}")
    for epoch in (1, 2):
        state.progress.epoch = state.progress.step = epoch
        if epoch == 1:  # of the second nothing is measured, and the first stays the best
            validate(state, task, 1)
        state.save()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1.1)
    found = final_metrics(state, task)
    Path(folder, f"found-{world}-{rank}").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.dist
def test_all_ranks_measure_the_chosen_weights(small, tmp_path):
    config = small(budget="0.5")
    measure_chosen(0, 1, config, str(tmp_path))
    mp.start_processes(
        measure_chosen, args=(2, config, str(tmp_path)), nprocs=2, start_method="spawn"
    )
    alone, *ranks = (
        json.loads((tmp_path / f"found-{name}").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert alone["selected"]["loss"] != alone["last"]["loss"]
    assert ranks == [alone, alone]
