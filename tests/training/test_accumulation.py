"""A batch in parts has the whole batch's gradient, batch norms aside."""

import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

from npas import tasks
from npas.config import run_dir
from npas.reporting.compose import compose
from npas.tasks.grounding import task as grounding
from npas.training import build, train
from npas.training.experiment import check_parts
from npas.training.loop import gradient
from npas.training.optim import build_optimizer
from npas.training.precision import Precision


class Images(nn.Module):
    """Classify images of any size."""

    def __init__(self, classes):
        super().__init__()
        self.convolution = nn.LazyConv2d(4, 3)
        self.answer = nn.Linear(4, classes)

    def forward(self, x):
        return self.answer(self.convolution(x).tanh().mean((2, 3)))


def gradients(task, model, batch, parts, config):
    """Return the summed loss and every parameter's gradient of a batch in so many parts."""
    optimizer = build_optimizer(model, config.optim)
    optimizer.zero_grad()
    precision = Precision(config.precision, torch.device("cpu"))
    _, sums, norms_N = gradient(task, model, batch.parts(parts), optimizer, precision)
    assert len(norms_N) == len(list(model.parameters()))
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return sums["loss"], found


@pytest.mark.parametrize(("precision", "parts"), [("fp32", 2), ("fp32", 64), ("fp16", 4)])
def test_parts_add_up_to_the_batch(small, precision, parts):
    config = small(precision=precision)
    task = build(config).task
    task.setup()
    batch, model = next(task.train_batches(0, 64)), Images(10)
    task.loss(model, batch)
    (loss, whole), (sums, added) = (gradients(task, model, batch, n, config) for n in (1, parts))
    close = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(sums, loss, check_dtype=False, **close)
    torch.testing.assert_close(added, whole, **close)


# Of each family an experiment on synthetic data; of one that is no image task its own network.
EXPERIMENTS = {
    "digits": "digits",
    "cifar": "wrn_cifar10",
    "imagenet": "mobilenet_v2_imagenet",
    "images": "images model=wrn_16_2 task.size=16 task.resize=20",
    "shortest_paths": "shortest_paths_small sharing.templates=null task.size=7",
    "squad": "tiny_squad",
    "mlm": "tiny_mlm",
    "grounding": "simnet_scenes",
    "retrieval": "adapt_scenes",
    "lm": "shakespeare",
    "text_classification": "text_classification model=bert_tiny",
}


def composed(experiment, *more):
    overrides = f"+exp={experiment} budget=dense batch_size=6 data.source=synthetic".split()
    few = {"train": 6, "test": 2, "batch_size": 6}
    return compose(*overrides, *(f"data.synthetic.{key}={n}" for key, n in few.items()), *more)


def test_no_task_is_left_out():
    names = {module.name for module in pkgutil.iter_modules(tasks.__path__)}
    assert names - tasks.SHARED == set(EXPERIMENTS)


@pytest.mark.parametrize("family", EXPERIMENTS)
def test_every_task_gives_parts_the_gradient_of_the_batch_or_refuses_them(family):
    """Batch norms and dropout, which see parts, are in evaluation mode."""
    config = composed(EXPERIMENTS[family], "trainer.grad_accum_steps=3")
    experiment = build(config)
    task, model = experiment.task, experiment.model
    if family == "retrieval":
        with pytest.raises(
            ValueError, match=r"compares all of a batch.*trainer.grad_accum_steps=1$"
        ):
            train(experiment, Path("run"))
        return
    check_parts(experiment)
    task.setup()
    batch = next(task.train_batches(0, 6))
    if family in ("digits", "cifar", "imagenet"):
        model = Images(task.spec.num_classes)
    task.loss(model.eval(), batch)
    (loss, whole), (sums, added) = (gradients(task, model, batch, n, config) for n in (1, 3))
    torch.testing.assert_close(sums, loss)
    greatest = max(float(grad.abs().max()) for grad in whole)
    assert greatest > 0
    torch.testing.assert_close(added, whole, rtol=1e-4, atol=1e-5 * greatest)


def test_ranks_weigh_their_labelled_pairs_by_those_of_all_ranks(monkeypatch):
    experiment = build(composed("simnet_scenes"))
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


def test_other_parts_are_another_run_that_may_go_on_from_this_one(small, tmp_path, caplog):
    case = {"epochs": 1, "run_root": str(tmp_path)}
    whole = small(**case)
    parts = small(**case, trainer={"grad_accum_steps": 2}, resume=str(run_dir(whole)))
    assert run_dir(whole) != run_dir(parts)
    assert train(build(whole), run_dir(whole)).earlier == []
    outcome = train(build(parts), run_dir(parts))
    assert (outcome.status, outcome.steps) == ("done", 5)
    assert outcome.earlier == [{"steps": 5, "ranks": 1, "grad_accum_steps": 1}]
    assert "(1 x 1, now 1 x 2)" in caplog.text and "not bit-identical" in caplog.text
    again = train(build(parts), run_dir(parts))  # from the run's own checkpoint
    assert again.earlier == outcome.earlier
