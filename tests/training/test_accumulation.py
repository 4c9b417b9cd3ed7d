"""A batch taken in parts has the gradient of the whole, where no batch norm looks at the parts."""

import dataclasses
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

import npas
from npas import tasks
from npas.config import config_hash, in_parts, run_dir
from npas.reporting.compose import compose
from npas.tasks.grounding import task as grounding
from npas.training import build, train
from npas.training.checkpoint import find_checkpoint
from npas.training.experiment import check_parts
from npas.training.loop import gradient
from npas.training.optim import build_optimizer
from npas.training.precision import Precision
from npas.training.state import refuse_another_config


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


# Of each family an experiment on synthetic data; of one that is no image task its own network.
EXPERIMENTS = {
    "digits": ("digits", ()),
    "cifar": ("wrn_cifar10", ()),
    "imagenet": ("mobilenet_v2_imagenet", ()),
    "shortest_paths": ("shortest_paths_small", ("sharing.templates=null", "task.size=7")),
    "squad": ("tiny_squad", ()),
    "mlm": ("tiny_mlm", ()),
    "grounding": ("simnet_scenes", ()),
    "retrieval": ("adapt_scenes", ()),
}
SYNTHETIC = {"train": 6, "test": 2, "batch_size": 6}


class Images(nn.Module):
    """Classify images of any size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.convolution = nn.LazyConv2d(4, 3)
        self.answer = nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer(self.convolution(x).tanh().mean((2, 3)))


@pytest.mark.parametrize("family", EXPERIMENTS)
def test_every_task_gives_parts_the_gradient_of_the_batch_or_refuses_them(family: str) -> None:
    """Batch norms and dropout, which see parts, are in evaluation mode."""
    exp, more = EXPERIMENTS[family]
    words = [f"+exp={exp}", "budget=dense", "batch_size=6", "data.source=synthetic", *more]
    few = [f"data.synthetic.{key}={count}" for key, count in SYNTHETIC.items()]
    experiment = build(compose(*words, *few, "trainer.grad_accum_steps=3"))
    task, model = experiment.task, experiment.model
    if family == "retrieval":
        with pytest.raises(
            ValueError, match=r"compares all of a batch.*trainer.grad_accum_steps=1$"
        ):
            train(experiment, Path("run"))
        check_parts(build(compose(*words, *few)))
        return
    check_parts(experiment)
    task.setup()
    batch = next(task.train_batches(0, 6))
    if family in ("digits", "cifar", "imagenet"):
        model = Images(task.spec.num_classes)
    model.eval()
    task.loss(model, batch)
    optimizer = build_optimizer(model, experiment.config.optim)
    precision = Precision("fp32", torch.device("cpu"))
    found = []
    for count in (1, 3):
        optimizer.zero_grad()
        _, sums, _ = gradient(task, model, batch.parts(count), optimizer, precision)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((sums["loss"], [grad.clone() for grad in gradients]))
    (whole_loss, whole), (loss, added) = found
    torch.testing.assert_close(loss, whole_loss)
    greatest = max(float(grad.abs().max()) for grad in whole)
    assert greatest > 0
    for one, other in zip(added, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * greatest)


def test_ranks_weigh_their_labelled_pairs_by_those_of_all_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = [f"data.synthetic.{key}={count}" for key, count in SYNTHETIC.items()]
    words = ("+exp=simnet_scenes", "budget=dense", "batch_size=6", "data.source=synthetic", *few)
    experiment = build(compose(*words))
    task, model = experiment.task, experiment.model.eval()
    task.setup()
    whole = next(task.train_batches(0, 6))
    total = (whole.targets["labels"] != 0).sum().float()
    monkeypatch.setattr(grounding, "over_ranks", lambda own, world: total if world > 1 else own)
    losses, weights = [], []
    for part in whole.parts(3):  # of one rank each
        weights += task.part_weights([part], 3)
        losses.append(task.loss(model, part)[0] * weights[-1])
    torch.testing.assert_close(sum(losses) / 3, task.loss(model, whole)[0])
    torch.testing.assert_close(sum(weights), torch.tensor(3.0))
    assert len({float(weight) for weight in weights}) > 1


def test_no_task_is_left_out_above() -> None:
    names = {module.name for module in pkgutil.iter_modules(tasks.__path__)}
    families = names - tasks.SHARED
    assert families == set(EXPERIMENTS)


def test_a_run_in_parts_logs_and_ends_like_one(small, run_small, tmp_path: Path) -> None:
    _, outcome = run_small("parts", trainer={"grad_accum_steps": 4}, epochs=1)
    assert (outcome.status, outcome.steps) == ("done", 5)


def test_other_parts_are_another_run_that_may_go_on_from_this_one(
    small, run_small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = small(epochs=1, run_root=str(tmp_path))
    parts = small(epochs=1, run_root=str(tmp_path), trainer={"grad_accum_steps": 2})
    assert run_dir(whole) != run_dir(parts)
    assert train(build(whole), run_dir(whole)).earlier == []
    named = dataclasses.replace(parts, epochs=1, resume=str(run_dir(whole)))
    outcome = train(build(named), run_dir(parts))
    assert (outcome.status, outcome.steps) == ("done", 5)
    assert outcome.earlier == [{"steps": 5, "ranks": 1, "grad_accum_steps": 1}]
    assert "(1 x 1, now 1 x 2)" in caplog.text and "not to the bit" in caplog.text
    again = train(build(named), run_dir(parts))  # from the run's own checkpoint
    assert again.earlier == outcome.earlier


def test_a_run_from_before_parts_were_hashed_goes_on(small, tmp_path: Path) -> None:
    parts = small(epochs=1, trainer={"grad_accum_steps": 2})
    train(build(parts), tmp_path / "old")
    (state,) = (tmp_path / "old" / "checkpoints").glob("*/state.json")
    assert config_hash(parts) in state.read_text()
    found = find_checkpoint(tmp_path / "old")
    found.state["config_hash"] = config_hash(in_parts(parts, 1, 1))
    refuse_another_config(parts, found)
    found.state["config_hash"] = config_hash(small(epochs=3))
    with pytest.raises(ValueError, match="was trained with another config"):
        refuse_another_config(parts, found)
