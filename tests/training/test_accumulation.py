"""A batch taken in parts has the gradient of the whole, where no batch norm looks at the parts."""

from pathlib import Path

import pytest
import torch
from torch import nn

import npas
from npas.training import build, train
from npas.training.loop import gradient
from npas.training.optim import build_optimizer
from npas.training.precision import Precision


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    return npas.share(model, budget=0.5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("parts", [2, 4, 64])
def test_parts_add_up_to_the_batch(small, parts: int, precision: str) -> None:
    experiment = build(small(precision=precision))
    experiment.task.setup()
    batch = next(experiment.task.train_batches(0, 64))

    def gradients(count: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model = network()
        optimizer = build_optimizer(model, experiment.config.optim)
        how = Precision(precision, torch.device("cpu"))
        _, sums, norms_N = gradient(experiment.task, model, batch.parts(count), optimizer, how)
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert len(norms_N) == len(found) == len(list(model.parameters()))
        return found, sums

    (whole, all_at_once), (added, summed) = gradients(1), gradients(parts)
    close = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-3}
    for name, expected in whole.items():
        torch.testing.assert_close(added[name], expected, msg=name, **close)
    for name, expected in all_at_once.items():
        torch.testing.assert_close(summed[name], expected, msg=name, check_dtype=False, **close)


def test_a_run_in_parts_logs_and_ends_like_one(small, run_small, tmp_path: Path) -> None:
    _, outcome = run_small("parts", trainer={"accumulation": 4}, epochs=1)
    assert (outcome.status, outcome.steps) == ("done", 5)


def test_without_the_last_parts_a_run_goes_on_in_other_ones(small, tmp_path: Path) -> None:
    """The parts are no key of the result: a resumed run may take its batches in others."""
    assert train(build(small(epochs=1)), tmp_path / "run").status == "done"
    again = build(small(epochs=1, trainer={"accumulation": 2}))
    assert train(again, tmp_path / "run").steps == 5
