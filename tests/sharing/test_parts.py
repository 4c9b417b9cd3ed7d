"""Holding dense parameters, or asking a part for the whole network's, warns; other uses do not."""

import copy
import pickle
import types
import warnings

import pytest
import torch
from tiny import Mlp, loss, shared
from torch import nn
from zoo import Residual

import npas

ASKED = {
    "freezing a stage": (lambda m: m.stage1.requires_grad_(False), r"requires_grad_\(\) of a part"),
    "freezing a layer": (lambda m: m.head.requires_grad_(False), r"requires_grad_\(\) of a part"),
    "freezing one by one": (
        lambda m: [p.requires_grad_(False) for p in m.stage1.parameters()], r"^parameters\(\) of a"
    ),
    "training a head": (lambda m: torch.optim.SGD(m.head.parameters(), 0.1), r"^parameters\(\) of"),
    "a copy": (lambda m: [*copy.deepcopy(m).stage1.parameters()], r"^parameters\(\) of a"),
    "a pickle": (lambda m: [*pickle.loads(pickle.dumps(m)).head.parameters()], r"^parameters\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
def test_a_part_asked_for_its_parameters_warns_at_the_line_that_asks(asked):
    ask, said = ASKED[asked]
    with pytest.warns(UserWarning, match=said + ".*share without it") as caught:
        ask(shared())
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)


def in_library(name, function):
    """Return a library's function that asks a module for its parameters."""
    library = types.ModuleType(name)
    exec(f"def {function}(m): return list(m.parameters())", library.__dict__)
    return library.__dict__[function]


def materialized(model):
    parameters = [*npas.materialize(model).get_submodule("stage1").parameters()]
    assert "parameters" not in model.stage1.__dict__
    return parameters


def moved_out(model):
    """Take a part out before the network is materialized: it is dense, too."""
    part, model.stage1 = model.stage1, nn.Identity()
    npas.materialize(model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in part.modules())
    assert b"npas" not in pickle.dumps(part)
    return list(part.parameters())


SILENT = {
    "the whole": lambda m: (list(m.parameters()), m.requires_grad_(True)),
    "what shares nothing": lambda m: m.stage1[0].norm.requires_grad_(False),
    "an owner of the whole": lambda m: list(nn.ModuleList([m]).parameters()),
    "module by module": lambda m: [[*k.parameters(recurse=False)] for k in m.modules()],
    "a library": lambda m: in_library("transformers.modeling", "device")(m.stage1),
    "materialized": materialized,
    "moved out, materialized": moved_out,
    "a question for the device": lambda m: next(m.head.parameters()).device,
    "averages": lambda m: torch.optim.swa_utils.AveragedModel(m).update_parameters(m),
    "part compiled": lambda m: m.stage1.compile(backend="eager"),
    "files": lambda m: m.load_state_dict(m.to(torch.float32).state_dict()),
}


@pytest.mark.parametrize("asked", SILENT)
def test_other_uses_do_not_warn(asked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SILENT[asked](shared())


def test_a_library_that_freezes_a_part_is_warned():
    with pytest.warns(UserWarning, match=r"^parameters\(\) of a part lacks"):
        in_library("transformers.models", "freeze_base_model")(shared().get_submodule("stage1"))


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
