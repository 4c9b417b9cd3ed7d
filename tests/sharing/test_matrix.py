"""What `npas.share` promises, cell by cell: network x groups x budget x generator x upsampler.

The quick cells hold every pair of values of the five columns; `pytest -m slow` runs all the others.
"""

import copy
import itertools
import re
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from naive import naive_weights
from torch.func import functional_call
from zoo import ZOO, Specimen

import npas
from npas.sharing.layers import find_layers

GENERATORS = ("avg", "wavg", "emb")
UPSAMPLERS = ("inter", "repeat", "mask", "wavg")
GROUPS = ("single", "type", "shape", "random", "manual")
BUDGETS = ("50%", "100%", "230%")
STEPS, FACTOR = 25, 0.8
"""So many steps of Adam bring the loss below this part of what it was."""


class Cell(NamedTuple):
    """One cell of the matrix."""

    specimen: Specimen
    groups: str
    generator: str
    upsampler: str
    budget: str

    def options(self):
        options = {
            "budget": self.budget,
            "generator": self.generator,
            "upsampler": self.upsampler,
            "groups": self.groups,
        }
        names = [layer.spec.name for layer in find_layers(self.specimen.make())]
        if self.groups == "random":
            options["num_groups"] = min(2, len(names))
        if self.groups == "manual":  # two groups; the last of several layers stays unshared
            options["groups"] = {name: i % 2 for i, name in enumerate(names[:-1] or names)}
        return options


def quick_cells():
    """Return cells that hold every pair of values of two columns."""
    return [
        Cell(
            specimen,
            groups,
            GENERATORS[(i + j) % len(GENERATORS)],
            UPSAMPLERS[(i + j) % len(UPSAMPLERS)],
            BUDGETS[(i + 2 * j) % len(BUDGETS)],
        )
        for (i, specimen), (j, groups) in itertools.product(enumerate(ZOO), enumerate(GROUPS))
    ]


QUICK = quick_cells()
ALL = [Cell(*row) for row in itertools.product(ZOO, GROUPS, GENERATORS, UPSAMPLERS, BUDGETS)]
CELLS = [
    pytest.param(
        cell,
        id="-".join([cell.specimen.name, *cell[1:]]),
        marks=() if cell in QUICK else pytest.mark.slow,
    )
    for cell in ALL
]


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell(cell, tmp_path):
    options = feasible(cell, cell.options())
    if not is_new(cell, options):
        return
    dense = cell.specimen.make()
    model = npas.share(cell.specimen.make(), **options)
    inputs, labels = cell.specimen.batch()

    keeps_its_budget(model, dense, at_floor=options["budget"] != cell.budget)
    gradients = first_gradients(model, inputs, labels)
    reaches_every_parameter(cell.specimen, gradients)
    agrees_with_the_naive_form(model, dense, inputs, labels)
    learns(model, inputs, labels)
    is_itself_in_every_form(model, cell.specimen, inputs, tmp_path)


def feasible(cell, options):
    """Return the options, at the smallest budget that the error names if theirs is below it."""
    try:
        npas.plan(cell.specimen.make(), **options)
    except ValueError as error:
        floor = re.search(r"ask for budget=(\S+) or more", str(error))
        assert floor is not None, error
        options = options | {"budget": floor[1]}
    return options


def is_new(cell, options):
    """Return whether the upsampler plays a part; if none does, the plan is that of `inter`."""
    plan = npas.plan(cell.specimen.make(), **options)
    if cell.upsampler == "inter" or any(layer.upsampler for layer in plan.layers):
        return True
    other = npas.plan(cell.specimen.make(), **(options | {"upsampler": "inter"}))
    assert plan == replace(other, scheme=plan.scheme)
    return False


def keeps_its_budget(model, dense, at_floor):
    plan = npas.allocation(model)
    used, allowed = npas.count_parameters(model), plan.budget.allowed
    assert used == plan.budget.used <= allowed
    assert at_floor or allowed - used <= max(allowed // 1000, len(plan.layers))
    assert plan.unread == 0
    assert plan.budget.dense == npas.count_parameters(dense)
    assert len(list(model.parameters())) == len({p.data_ptr() for p in model.parameters()})


def first_gradients(model, inputs, labels):
    model.zero_grad()
    F.cross_entropy(model(inputs), labels).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        gradients[name] = parameter.grad
    return gradients


def reaches_every_parameter(specimen, gradients):
    for name, gradient in gradients.items():
        if name.startswith("npas_bank"):
            assert (gradient != 0).float().mean() >= specimen.reached, name
        elif name.startswith("npas_"):
            assert gradient.any(), name


def agrees_with_the_naive_form(model, dense, inputs, labels):
    model, dense, inputs = copy.deepcopy(model).double(), dense.double(), inputs.double()
    parameters = dict(model.named_parameters())
    loss = F.cross_entropy(model(inputs), labels)
    tensors = parameters | dict(model.named_buffers())
    weights = naive_weights(npas.allocation(model), tensors)
    unshared = {name: p for name, p in parameters.items() if not name.startswith("npas_")}
    naive_loss = F.cross_entropy(functional_call(dense, weights | unshared, inputs), labels)
    torch.testing.assert_close(loss, naive_loss, rtol=1e-12, atol=0)
    found = torch.autograd.grad(loss, list(parameters.values()))
    expected = torch.autograd.grad(naive_loss, list(parameters.values()))
    for name, gradient, naive in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(
            gradient, naive, rtol=1e-9, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}"
        )


def learns(model, inputs, labels):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Once a loss is near zero, Adam at this rate may throw it up for a step.
    assert min(losses[-3:]) < FACTOR * losses[0]


@torch.no_grad()
def is_itself_in_every_form(model, specimen, inputs, folder):
    """Copied, saved and loaded, materialized: equal to the bit, and apart from the original."""
    outputs = model.eval()(inputs)
    with torch.inference_mode():
        assert torch.equal(model(inputs), outputs)
    twin = copy.deepcopy(model)
    npas.save(model, folder)
    loaded = npas.load(folder, specimen.make(seed=1)).eval()
    next(model.parameters()).add_(1)
    assert torch.equal(twin(inputs), outputs)
    assert torch.equal(loaded(inputs), outputs)
    assert [name for name, _ in loaded.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]
    dense = specimen.make()
    plain = npas.materialize(twin)
    assert torch.equal(plain(inputs), outputs)
    with torch.enable_grad():
        assert torch.equal(plain(inputs), loaded(inputs)), "generated again"
    shapes = [[(k, v.shape) for k, v in n.state_dict().items()] for n in (plain, dense)]
    assert shapes[0] == shapes[1]
    assert npas.count_parameters(plain) == npas.count_parameters(dense)
    for ours, theirs in zip(plain.modules(), dense.modules(), strict=True):  # no trace of npas
        assert type(ours).__name__ == type(theirs).__name__
        assert vars(ours).keys() == vars(theirs).keys()
        assert not ours._forward_pre_hooks and not ours._forward_hooks
