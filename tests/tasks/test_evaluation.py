"""What a network measures is the same to the bit, by however many ranks it is measured."""

import json
import math
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_ranks import by_ranks
from torch import Tensor, nn

from npas.config import DataConfig
from npas.tasks import base, classification, digits
from npas.tasks.base import over_ranks
from npas.tasks.shortest_paths import task as shortest_paths

CPU = torch.device("cpu")
DATA = DataConfig(root="nowhere", val_fraction=0.1, download=False)
FAMILIES = {"digits": classification, "shortest_paths": shortest_paths}


class Network(nn.Module):
    """Answer with floats of every size, and remember what was asked."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.per_cell = task.spec.outputs == "cell"
        self.layers = nn.Sequential(
            nn.Conv2d(task.spec.input_shape[0], 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout()
        )
        self.answer = nn.Conv2d(8, task.spec.num_classes, 1)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits = self.answer(self.layers(x))
        return logits if self.per_cell else logits.mean((2, 3)) * 10


def make(name: str) -> Any:
    if name == "digits":
        task: Any = digits.Task(digits.Config(), DATA, seed=0, device=CPU)
    else:
        config = shortest_paths.Config(size=7, phases=[2, 4, 6], val_samples=70, test_samples=45)
        data = DataConfig(val_fraction=None)
        task = shortest_paths.Task(config, data, seed=0, device=CPU)
    task.setup()
    return task


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", FAMILIES)
def test_any_number_of_ranks_measures_the_same_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str
) -> None:
    monkeypatch.setattr(FAMILIES[name], "EVAL_BATCH", 40)

    def patch(over_ranks: Any) -> None:
        monkeypatch.setattr(FAMILIES[name], "over_ranks", over_ranks)

    task = make(name)
    model = Network(task)
    alone = task.evaluate(model, split)
    sizes, model.sizes = model.sizes, []
    assert len(sizes) > 3 and len(set(sizes)) > 1
    for world in (1, 2, 3, 5, 20):
        found = by_ranks(task, model, split, world, patch)
        assert found == [alone] * world
        assert sorted(model.sizes) == sorted(sizes * 2)  # each batch once in both passes
        model.sizes = []
    assert model.training


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rank_measures_its_own_batches_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAMILIES[name], "EVAL_BATCH", 10)
    monkeypatch.setattr(FAMILIES[name], "over_ranks", lambda x, world: torch.ones_like(x))
    task = make(name)
    model = Network(task)
    task.evaluate(model, "test")
    whole, counts = model.sizes, []
    for rank in range(3):
        model.sizes = []
        task.evaluate(model, "test", rank, 3)
        assert model.sizes == whole[rank::3]
        counts.append(sum(model.sizes))
    assert sum(counts) == {"digits": 359, "shortest_paths": 3 * 45}[name]


@pytest.mark.parametrize("world", [1, 3])
def test_a_loss_that_is_no_number_is_none_for_any_rank(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make("digits")
    model = Network(task)
    nn.init.constant_(model.answer.weight, float("nan"))
    for metrics in by_ranks(
        task, model, "test", world, lambda f: monkeypatch.setattr(classification, "over_ranks", f)
    ):
        assert math.isnan(metrics["loss"])


def test_image_tasks_measure_in_batches_of_250() -> None:
    assert classification.EVAL_BATCH == 250


def test_a_rank_alone_asks_nobody() -> None:
    tensor = torch.ones(3)
    assert over_ranks(tensor, 1) is tensor


def measure(rank: int, world: int, folder: Path) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for name in FAMILIES:
        task = make(name)
        found[name] = [task.evaluate(Network(task), s, rank, world) for s in ("val", "test")]
        plain, made = (
            list(base.batches(task, 0, 240, rank=rank, world=world, workers=n)) for n in (0, 2)
        )
        found[f"{name} batches"] = len(plain)
        for one, other in zip(plain, made, strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_three_processes_measure_what_one_does_and_their_workers_make_the_same_batches(
    fork: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    ranks = [fork(measure, rank, 3, tmp_path) for rank in range(3)]
    expected: dict[str, Any] = {"digits batches": 1295 // 240, "shortest_paths batches": 41}
    for name in FAMILIES:
        task = make(name)
        expected[name] = [task.evaluate(Network(task), split) for split in ("val", "test")]
    for rank, process in enumerate(ranks):
        process.join(60)
        assert process.exitcode == 0
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
