"""Who holds dense parameters when a network is shared is told so; mere copies are not."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import INPUTS, Mlp
from torch import nn

import npas


class Average:
    """Follow parameters, as written by a user."""

    def __init__(self, model: nn.Module) -> None:
        self.followed = list(model.parameters())


class Tied(nn.Module):
    """Read another network's weight."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weight = model.head.last.weight


def stepped(model: nn.Module) -> torch.optim.lr_scheduler.LRScheduler:
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    model(torch.ones(2, 12)).sum().backward()
    optimizer.step()
    return torch.optim.lr_scheduler.StepLR(optimizer, 5)


def penalty(model: nn.Module) -> Callable[[], torch.Tensor]:
    parameters = list(model.parameters())
    return lambda: sum((p.square().sum() for p in parameters), torch.zeros(()))


HOLDERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "optimizer": (lambda m: torch.optim.SGD(m.parameters(), 0.1), "SGD was .* 4 parameters that"),
    "stepped": (stepped, r"AdamW was .* 4 .* \(body.first.weight, body.last.weight, head.*\.\)"),
    "average": (Average, "Average was .* 4 "),
    "closure": (penalty, r"the function penalty\.<locals>\.<lambda> was .* 4 "),
    "list": (lambda m: [m.head.last.weight], r"a list .* 1 parameter that .* \(head.last.w"),
    "tied": (Tied, "Tied was .* 1 parameter that"),
}  # fmt: skip


@pytest.mark.parametrize("holder", HOLDERS)
def test_who_holds_dense_parameters_is_named_once(holder: str, tmp_path: Path) -> None:
    make, said = HOLDERS[holder]
    model = Mlp()
    kept = make(model)
    with pytest.warns(UserWarning, match=said) as caught:
        if holder == "list":
            npas.save(npas.share(Mlp(), 0.7), tmp_path)
            npas.load(tmp_path, model)
        else:
            npas.share(model, 0.7)
    assert len(caught) == 1 and caught[0].filename == __file__, kept
    assert str(caught[0].message).endswith(": make it after sharing")


COPIES: dict[str, Callable[[Any], object]] = {
    "state_dict": lambda m: m.state_dict(),
    "clones": lambda m: [p.detach().clone() for p in m.parameters()],
    "deepcopy": copy.deepcopy,
    "average": torch.optim.swa_utils.AveragedModel,
    "graph": lambda m: m(INPUTS.reshape(-1, 12)),
    "variable": lambda m: m.head.last.weight,
    "unshared": lambda m: torch.optim.SGD([m.head.last.bias], 0.1),
    "what is gone": lambda m: stepped(m) and None,
}


@pytest.mark.parametrize("kept", COPIES)
def test_copies_graphs_and_what_stays_unshared_raise_no_alarm(kept: str) -> None:
    model = Mlp()
    there = COPIES[kept](model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npas.share(model, 0.7)
    assert there is not None or kept == "what is gone"
