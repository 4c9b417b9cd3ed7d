"""Holding dense parameters, or freezing a part of the network, warns; other uses do not."""

import copy
import pickle
import warnings

import pytest
import torch
from tiny import Mlp, loss, shared
from torch import nn
from zoo import Residual

import npas


def test_freezing_a_part_warns_at_the_line_that_asks():
    frozen = {
        "a stage": lambda m: m.stage1.requires_grad_(False),
        "of a copy": lambda m: copy.deepcopy(m).stage1.requires_grad_(False),
        "of a pickle": lambda m: pickle.loads(pickle.dumps(m)).head.requires_grad_(False),
    }
    for freeze in frozen.values():
        with pytest.warns(
            UserWarning, match=r"requires_grad_\(\) of a part.*share without"
        ) as caught:
            freeze(shared())
        assert len(caught) == 1 and caught[0].filename == __file__


def materialized(model):
    part = npas.materialize(model).get_submodule("stage1").requires_grad_(False)
    assert "requires_grad_" not in part.__dict__


def moved_out(model):
    """Take a part out before the network is materialized: it is dense, too."""
    part, model.stage1 = model.stage1, nn.Identity()
    npas.materialize(model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in part.modules())
    assert b"npas" not in pickle.dumps(part)
    part.requires_grad_(False)


SILENT = {
    "the whole": lambda m: (list(m.parameters()), m.requires_grad_(True)),
    "what shares nothing": lambda m: m.stage1[0].norm.requires_grad_(False),
    "materialized": materialized,
    "moved out, materialized": moved_out,
    "averages": lambda m: torch.optim.swa_utils.AveragedModel(m).update_parameters(m),
    "part compiled": lambda m: m.stage1.compile(backend="eager"),
    "files": lambda m: m.load_state_dict(m.to(torch.float32).state_dict()),
}


@pytest.mark.parametrize("asked", SILENT)
def test_other_uses_do_not_warn(asked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SILENT[asked](shared())


def test_a_part_in_a_group_of_its_own_is_frozen_with_its_bank():
    """As the documentation says."""
    groups = {"stage1.*": "frozen", "*": "trained"}
    model = npas.share(Residual(), 0.5, groups=groups)
    g = [group.name for group in npas.allocation(model).groups].index("frozen")
    for name, parameter in model.named_parameters():
        if name.startswith(("stage1.", f"npas_bank_{g}", f"npas_coefficients_{g}_")):
            parameter.requires_grad_(False)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.1)

    def weights():
        dense = npas.materialize(copy.deepcopy(model))
        return {name: p.detach() for name, p in dense.named_parameters()}

    before = weights()
    loss(model).backward()
    optimizer.step()
    moved = {name for name, value in weights().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith("stage1.")}


def test_an_optimizer_made_before_sharing_is_named_once():
    model = Mlp()
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    model(torch.ones(2, 12)).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"AdamW was .* 4 parameters .*: make it after") as caught:
        npas.share(model, 0.7)
    assert len(caught) == 1 and caught[0].filename == __file__


HELD = {
    "state_dict": lambda m: m.state_dict(),
    "deepcopy": copy.deepcopy,
    "variable": lambda m: m.head.last.weight,
    "an optimizer of what stays": lambda m: torch.optim.SGD([m.head.last.bias], 0.1),
}


@pytest.mark.parametrize("held", HELD)
def test_copies_and_what_stays_unshared_raise_no_alarm(held):
    model = Mlp()
    there = HELD[held](model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npas.share(model, 0.7)
    assert there is not None
