"""Helpers that read, compare and interrupt small trainings."""

import json

import torch

from npas.training.optim import build_optimizer
from npas.training.state import TrainState


class Stopped(Exception):
    """Stands for a kill right after a checkpoint was written."""


def stop_after(patch, epochs, stage="train"):
    """Let the next trainings stop after their n-th epoch's checkpoint."""
    save = TrainState.save

    def save_and_stop(self):
        save(self)
        if self.experiment.stage == stage and self.progress.epoch == epochs:
            raise Stopped

    patch.setattr(TrainState, "save", save_and_stop)


def log(folder):
    """Return the logged figures, without the times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def same(one, other):
    """Return whether two networks have the same state, to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and equal(ours, theirs)


def equal(one, other):
    """Return whether the tensors of `one` are those of `other` by the same names."""
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def leaves_nothing_behind(model, parameter, config, inputs, before):
    """Take some steps, then one whose gradient is NaN, and see that it changes nothing."""
    optimizer = build_optimizer(model, config)

    def step(wrong):
        model(inputs).square().sum().backward()
        if wrong:
            parameter.grad.fill_(float("nan"))
        optimizer.found_inf = torch.tensor(float(wrong))
        optimizer.step()
        optimizer.zero_grad()

    def tensors():
        kept = [value for state in optimizer.state.values() for value in state.values()]
        return [*model.parameters(), *kept]

    def everything():
        return [tensor.detach().clone() for tensor in tensors()]

    own = [id(tensor) for tensor in tensors()]
    for _ in range(before):
        step(wrong=False)
    held = everything()
    step(wrong=True)
    assert all(torch.equal(a, b) for a, b in zip(held, everything(), strict=True))
    step(wrong=False)
    assert not any(torch.equal(a, b) for a, b in zip(held, everything(), strict=True))
    assert own == [id(tensor) for tensor in tensors()]  # all were there before the first step
